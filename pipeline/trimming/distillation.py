"""Self-distillation: the trimmed forward follows the full one (SmartTrim, eq. 9)."""

from torch import Tensor
from torch.nn import functional as F


def class_divergence(trimmed_BK: Tensor, full_BK: Tensor) -> Tensor:
    """KL( softmax(trimmed) ‖ softmax(full) ), mean over the batch; no gradient flows to the full model's side."""
    trimmed, full = trimmed_BK.log_softmax(-1), full_BK.detach().log_softmax(-1)
    return F.kl_div(full, trimmed, reduction="batchmean", log_target=True)


def answer_divergence(trimmed_BA: Tensor, full_BA: Tensor) -> Tensor:
    """KL( trimmed ‖ full ) of a Bernoulli for each answer's sigmoid, summed over answers, mean over the batch.

    No gradient flows to the full model's side.
    """
    full_BA = full_BA.detach()
    yes_BA = trimmed_BA.sigmoid() * (F.logsigmoid(trimmed_BA) - F.logsigmoid(full_BA))
    no_BA = (-trimmed_BA).sigmoid() * (F.logsigmoid(-trimmed_BA) - F.logsigmoid(-full_BA))
    return (yes_BA + no_BA).sum(-1).mean()
