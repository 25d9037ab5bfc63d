"""Image-text matching with in-batch negatives (ALBEF, arXiv 2107.07651, section 3.2).

B batch of this process, N rows that negatives are drawn from: its own, or those of all processes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Negatives:
    """Negatives: for text b the image `image_B[b]`, for image b the text `text_B[b]`; rows of a pool of N."""

    image_B: Tensor
    text_B: Tensor


def negative_weights(logits_BN: Tensor, same_BN: Tensor, own_B: Tensor) -> Tensor:
    """(B, N) float64 weights of negatives: softmax of the similarities, 0 where row and column match.

    Args:
        logits_BN: Similarities of each row to the columns of the pool.
        same_BN: True where a column is no negative of the row: the pair itself, the same image or the same words.
        own_B: Column of each row's own pair.

    Returns:
        Weights; a row whose columns all match gets equal weights on all but its own pair, for there must be one.
    """
    # Masked before the softmax: beside a pair that scores far higher the true negatives would all round to 0.
    weights = logits_BN.detach().double().masked_fill(same_BN, -torch.inf).softmax(1)
    others = torch.ones_like(weights).scatter(1, own_B[:, None], 0.0)
    return torch.where(same_BN.all(1, keepdim=True), others, weights)


def draw_rows(weights_BN: Tensor, chance_B: Tensor) -> Tensor:
    """(B,) one column for each row, in proportion to its weights.

    Args:
        weights_BN: Not all 0 in any row.
        chance_B: Uniform numbers in [0, 1); the same number always draws the same column.
    """
    reached_BN = weights_BN.cumsum(1)
    total_B1 = reached_BN[:, -1:]
    # The product may round up to the total, which no column goes beyond.
    wanted_B1 = (chance_B[:, None] * total_B1).minimum(total_B1.nextafter(torch.zeros_like(total_B1)))
    # A column of weight 0 ends where the one before it ends, so it is never the first beyond what is wanted.
    return (reached_BN <= wanted_B1).sum(1)


def matching_loss(logits_N2: Tensor, matches_N: Tensor) -> Tensor:
    """Mean cross entropy; class 1 is a match."""
    return F.cross_entropy(logits_N2, matches_N.long())
