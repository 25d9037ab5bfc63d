"""What a text that grows word by word keeps of the words before, so that each passes through the layers once.

R rows (texts that grow side by side), L tokens so far, N new tokens, D width.
"""

import torch
from torch import Tensor


class Past:
    """Self-attention's keys and values of all tokens so far, by the projections that made them.

    Attributes:
        length: L.
    """

    def __init__(self) -> None:
        self.length = 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def grown(self, maker: int, k_RND: Tensor, v_RND: Tensor) -> tuple[Tensor, Tensor]:
        """(R, L + N, D) keys and values: those before and the new ones, which are kept too.

        Args:
            maker: Stands for the projections, as `id` gives it.
            k_RND: Keys of the new tokens.
            v_RND: Their values.
        """
        if maker in self._kept:
            k, v = self._kept[maker]
            k_RND, v_RND = torch.cat([k, k_RND], 1), torch.cat([v, v_RND], 1)
        self._kept[maker] = k_RND, v_RND
        return k_RND, v_RND

    def grown_as(
        self, maker: int, k: Tensor, v: Tensor, offsets: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
        """The same in the layout of what is given: (R, N, D), or packed with its `offsets`, rows of one length."""
        if offsets is None:
            return *self.grown(maker, k, v), None
        rows = len(offsets) - 1
        k, v = self.grown(maker, k.unflatten(0, (rows, -1)), v.unflatten(0, (rows, -1)))
        length = k.shape[1]
        return k.flatten(0, 1), v.flatten(0, 1), tuple(range(0, rows * length + 1, length))

    def take(self, rows_R: Tensor) -> None:
        """Goes on with these rows, of which some may be the same: each new text begins as one of the old ones."""
        self._kept = {maker: (k[rows_R], v[rows_R]) for maker, (k, v) in self._kept.items()}
