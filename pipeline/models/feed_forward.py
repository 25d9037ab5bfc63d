"""The feed-forward part of both blocks: two linear maps with an activation between.

M rows, D width in and out, F width between.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.linear import Linear, faster_by_onednn, rounded

Activation = Literal["gelu", "quick_gelu"]
"""GELU in its erf form, or OpenAI's x * sigmoid(1.702 x)."""

# What lies between the maps is four times as wide as the stream: of a whole batch it goes to memory and comes back, and
# pieces of memory above 32 MiB are faulted in anew each time. 8 MiB stay in the cache (2 cores of a Xeon with AVX-512,
# 5,200 rows of 768 x 3072: 250 ms against 663 for quick_gelu, 227 against 300 for GELU).
_HIDDEN_AT_ONCE = 2**21


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, the activation that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def feed_forward(x: Tensor, first: Linear, second: Linear, activation: Activation = "gelu") -> Tensor:
    """``second(activation(first(x)))``; where a CPU only answers, some rows after the other.

    Args:
        x: (..., D), packed (M, D) or padded.
        first: D to F.
        second: F to D.
        activation: Between them.

    Returns:
        (..., D).
    """
    if first.training or not faster_by_onednn(x, first.weight, first.bias):
        return second(_activated(first, x, activation))
    # Padded rows keep three dimensions: `linear` rounds up none but packed ones.
    rows = x if x.ndim == 2 else x.flatten(0, -2)[None]
    parts = rows.split(max(1, _HIDDEN_AT_ONCE // first.out_features), -2)
    made = [
        second(_activated(first, rounded(part, first.weight), activation))[..., : part.shape[-2], :] for part in parts
    ]
    return (made[0] if len(made) == 1 else torch.cat(made, -2)).view(*x.shape[:-1], -1)


def _activated(first: Linear, x: Tensor, activation: Activation) -> Tensor:
    """(M, D) -> (M, F)."""
    if activation == "gelu":
        return first.then_gelu(x)
    hidden = first(x)
    if torch.is_grad_enabled():
        return quick_gelu(hidden)
    return hidden.mul_(hidden.mul(1.702).sigmoid_())  # two tensors of this size are fewer than three


class Mlp(nn.Module):
    """The pre-norm block's; timm's names."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return feed_forward(x, self.fc1, self.fc2, self.activation)


class Intermediate(nn.Module):
    """First map of the post-norm block's, GELU (erf) after it; Hugging Face's ``intermediate``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., F)."""
        return self.dense.then_gelu(x)
