"""Masked words with momentum soft labels (ALBEF, arXiv 2107.07651, eq. 3 and 7).

B batch, L tokens, V vocabulary, M masked positions of this process.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.seeds import uniforms
from pipeline.objectives.gather import mean_over_global_count

# Of the drawn positions 80% are masked, 10% get a word by chance, and 10% stay (BERT, arXiv 1810.04805, appendix A.1).
_MASKED_BELOW, _CHANGED_BELOW = 0.8, 0.9


@dataclass(frozen=True)
class MaskedWords:
    """Ids with drawn positions changed, and which positions those are.

    Attributes:
        ids_BL: Input of the word task.
        drawn_BL: True at positions whose original word is to be told.
        target_M: The original words, in row order.
        places_M: Where they stand in the flattened texts; found from `drawn_BL` if not given.
    """

    ids_BL: Tensor
    drawn_BL: Tensor
    target_M: Tensor
    places_M: Tensor | None = None

    def at(self, x_BLD: Tensor) -> Tensor:
        """(M, D) what stands at the drawn positions.

        By numbers, not by `drawn_BL`: for a mask a GPU must come to rest to say how many there are.
        """
        places_M = _places(self.drawn_BL) if self.places_M is None else self.places_M
        return x_BLD.flatten(0, 1).index_select(0, places_M)


def _places(drawn_BL: Tensor) -> Tensor:
    return drawn_BL.flatten().nonzero()[:, 0]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids that masking must know."""

    mask: int
    size: int


def mask_words(ids_BL: Tensor, mask_BL: Tensor, seeds_B: Tensor, share: float, words: Vocabulary) -> MaskedWords:
    """Draw positions with probability `share`: 80% become the mask token, 10% a random word, 10% stay.

    Neither padding nor the class token is drawn; the end token may be, as in the reference.

    Args:
        ids_BL: Token ids, class token first.
        mask_BL: True at real tokens.
        seeds_B: Seed of each row's draws; the same row is masked alike in every batch and on every process.
        share: Probability of each position.
        words: Mask id and vocabulary size.

    Returns:
        The masked text.
    """
    # Position by position, so that the draws do not depend on the padding.
    chance_BL, kind_BL, word_BL = uniforms(seeds_B, 3 * ids_BL.shape[1]).unflatten(1, (-1, 3)).unbind(-1)
    drawn_BL = (chance_BL < share) & mask_BL.bool()
    drawn_BL[:, 0] = False
    changed_BL = torch.where(kind_BL < _MASKED_BELOW, words.mask, (word_BL * words.size).to(ids_BL.dtype))
    ids = torch.where(drawn_BL & (kind_BL < _CHANGED_BELOW), changed_BL, ids_BL)
    places_M = _places(drawn_BL)
    return MaskedWords(ids, drawn_BL, ids_BL.flatten().index_select(0, places_M), places_M)


def word_loss(
    scores_MV: Tensor, target_M: Tensor, momentum_scores_MV: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """``(1 - alpha) * cross entropy + alpha * cross entropy against the momentum model``, by global count.

    Args:
        scores_MV: Scores at the drawn positions.
        target_M: Original words.
        momentum_scores_MV: The momentum model's scores there, constant; None for hard labels only.
        alpha: Weight of the soft labels.

    Returns:
        Scalar; its mean over processes is the mean over all their drawn positions.
    """
    total = F.cross_entropy(scores_MV, target_M, reduction="sum")
    if momentum_scores_MV is not None:
        soft = F.cross_entropy(scores_MV, momentum_scores_MV.detach().softmax(-1), reduction="sum")
        total = (1 - alpha) * total + alpha * soft
    return mean_over_global_count(total, total.new_full((), len(target_M)))
