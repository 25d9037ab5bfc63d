"""Task heads on fused features, with the official METER's parameter names.

B batch, F width of the fused features, A classes or answers.
"""

from torch import nn

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
