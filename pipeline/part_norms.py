"""The size of each part's gradient, seen where autograd hands it to a parameter.

That is before it is added to those of the parts before and before any engine averages it over processes: DeepSpeed does
so inside its backward, from hooks that run after the gradient has been added.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class PartNorms:
    """Watches the backward passes of one update on this process.

    Args:
        params: Whose gradients count.
    """

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        self._norms: list[Tensor] = []
        # A leaf's hook is given the sum over all uses of it in this backward pass.
        self._hooks = [param.register_hook(self._look) for param in params]

    def _look(self, gradient: Tensor) -> None:
        self._norms.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32))

    def take(self) -> float:
        """Sum over the parts of their gradients' squared norms; nothing is watched any more."""
        for hook in self._hooks:
            hook.remove()
        norms, self._norms, self._hooks = self._norms, [], []
        return float(torch.stack(norms).double().square().sum()) if norms else 0.0
