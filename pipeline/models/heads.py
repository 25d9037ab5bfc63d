"""Task heads on fused features, with the official METER's parameter names.

B batch, C candidates, F width of the fused features, A classes or answers.
"""

import torch
from torch import Tensor, nn

from pipeline.models.blocks import init_transformer
from pipeline.models.linear import Linear

CLASSIFIER_EPS = 1e-5


class TaskClassifier(nn.Sequential):
    """Linear, norm, GELU (erf), linear: (B, F) features -> (B, A) scores.

    Args:
        features: F.
        hidden: Width between the linear maps.
        classes: A.
        eps: Of the norm.
    """

    def __init__(self, features: int, hidden: int, classes: int, eps: float = CLASSIFIER_EPS) -> None:
        super().__init__(Linear(features, hidden), nn.LayerNorm(hidden, eps=eps), nn.GELU(), Linear(hidden, classes))
        init_transformer(self, hidden)


def rank_head_of(matching: nn.Linear) -> nn.Linear:
    """The head that ranks candidates, begun as matching's score of a match."""
    head = Linear(matching.in_features, 1, device=matching.weight.device, dtype=matching.weight.dtype)
    with torch.no_grad():
        head.weight.copy_(matching.weight[1:])
        head.bias.copy_(matching.bias[1:])
    return head


def candidate_scores(head: nn.Linear, features_BCF: Tensor) -> Tensor:
    """(B, C, F) features of each query with its candidates -> (B, C) scores, to be compared within a row."""
    return head(features_BCF).squeeze(-1)
