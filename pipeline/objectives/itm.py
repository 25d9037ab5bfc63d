"""Image-text matching with in-batch hard negatives (ALBEF, arXiv 2107.07651, section 3.2).

B batch of this process.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Negatives:
    """Hard negatives: for text b the image `image_B[b]`, for image b the text `text_B[b]`."""

    image_B: Tensor
    text_B: Tensor


def negative_weights(logits_BB: Tensor, same_BB: Tensor) -> Tensor:
    """(B, B) probability weights of negatives: softmax of the similarities, 0 where row and column match.

    Args:
        logits_BB: Similarities of each row to the columns of the batch.
        same_BB: True where a column is no negative of the row: the pair itself, the same image or the same words.

    Returns:
        Weights; a row whose columns are all the same gets equal weights off the diagonal, for there must be one.
    """
    # Masked before the softmax: beside a pair that scores far higher the true negatives would all round to 0.
    weights = logits_BB.detach().float().masked_fill(same_BB, -torch.inf).softmax(1)
    off_diagonal = 1 - torch.eye(len(weights), device=weights.device)
    return torch.where(same_BB.all(1, keepdim=True), off_diagonal, weights)


def draw_negatives(
    image_to_text_BB: Tensor, text_to_image_BB: Tensor, same_BB: Tensor, generator: torch.Generator | None = None
) -> Negatives:
    """One negative image for each text and one negative text for each image, in proportion to similarity.

    Args:
        image_to_text_BB: Logits of image rows to the batch's texts.
        text_to_image_BB: Logits of text rows to the batch's images.
        same_BB: True where row and column belong together; symmetric.
        generator: Random state; torch's default if None.

    Returns:
        The draws. B must be at least 2.
    """
    image_B = torch.multinomial(negative_weights(text_to_image_BB, same_BB), 1, generator=generator)[:, 0]
    text_B = torch.multinomial(negative_weights(image_to_text_BB, same_BB), 1, generator=generator)[:, 0]
    return Negatives(image_B, text_B)


def matching_loss(logits_3B2: Tensor) -> Tensor:
    """Mean cross entropy; the first third are true pairs (class 1), the others negatives (class 0)."""
    labels = torch.zeros(len(logits_3B2), dtype=torch.long, device=logits_3B2.device)
    labels[: len(logits_3B2) // 3] = 1
    return F.cross_entropy(logits_3B2, labels)
