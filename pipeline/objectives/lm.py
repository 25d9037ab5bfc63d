"""Captioning: each word from those before it and the image (BLIP, arXiv 2201.12086, section 3.2).

B batch, L tokens, V vocabulary, M words to tell of this process.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.objectives.gather import mean_over_global_count

LABEL_SMOOTHING = 0.1


def next_words(mask_BL: Tensor, prompt: int = 0) -> Tensor:
    """(B, L) True at positions whose next token is a word to tell: padding is not, the end token is.

    Args:
        mask_BL: True at real tokens.
        prompt: How many tokens each text begins with that are given and not told.
    """
    following = torch.zeros_like(mask_BL, dtype=torch.bool)
    following[:, :-1] = mask_BL[:, 1:].bool()
    following[:, : max(0, prompt - 1)] = False
    return following


def text_losses(scores_MV: Tensor, ids_BL: Tensor, mask_BL: Tensor, smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """(B,) `caption_loss`'s sum over the words of each text, the first token being given; scores as there."""
    told_BL = next_words(mask_BL)
    losses_M = F.cross_entropy(scores_MV, ids_BL[told_BL.roll(1, 1)], reduction="none", label_smoothing=smoothing)
    return losses_M.new_zeros(told_BL.shape).masked_scatter(told_BL, losses_M).sum(1)


def caption_loss(scores_MV: Tensor, target_M: Tensor, smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """``(1 - s) * -log p(target) + s * mean over the vocabulary of -log p``, by global count.

    Args:
        scores_MV: Scores of the decoder at positions of `next_words`.
        target_M: The tokens that follow there.
        smoothing: s, BLIP's 0.1.

    Returns:
        Scalar; its mean over processes is the mean over all their words.
    """
    total = F.cross_entropy(scores_MV, target_M, reduction="sum", label_smoothing=smoothing)
    return mean_over_global_count(total, total.new_full((), len(target_M)))
