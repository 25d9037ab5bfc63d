"""Answers with soft scores (VQA): a picture may have several right ones.

B batch, A answers.
"""

from torch import Tensor
from torch.nn import functional as F


def answer_loss(scores_BA: Tensor, targets_BA: Tensor, counted_B1: Tensor | None = None) -> Tensor:
    """Binary cross entropy of each answer by itself, summed over answers, mean over the batch (METER).

    Args:
        scores_BA: Logits.
        targets_BA: Wanted probabilities in [0, 1].
        counted_B1: Weights of the questions; the mean stays over all of them.
    """
    return F.binary_cross_entropy_with_logits(scores_BA, targets_BA, counted_B1) * scores_BA.shape[1]
