"""The momentum tower: a slowly following copy of the parts that give soft labels."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.models.albef import Albef

HEADS = ("vision_proj", "text_proj")
TOWERS = ("visual_encoder", "text_encoder")


class MomentumTower:
    """Exponential moving average of ALBEF's encoders and projections; no module of the optimizer's.

    Args:
        model: The online model; the copy begins equal to it.
        momentum: μ in ``p_m <- μ p_m + (1 - μ) p``.
    """

    def __init__(self, model: Albef, momentum: float = 0.995) -> None:
        self.momentum = momentum
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, online: Albef) -> None:
        """Follow the online model by one step."""
        mine: list[Tensor] = [p for _, p in averaged_parameters(self.model)]
        theirs = [p.to(m.dtype) for (_, p), m in zip(averaged_parameters(online), mine, strict=True)]
        torch._foreach_lerp_(mine, theirs, 1 - self.momentum)

    def tensors(self) -> dict[str, Tensor]:
        """All state, for a checkpoint."""
        return {name: p.data for name, p in averaged_parameters(self.model)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the state of `tensors`; names must match."""
        for name, parameter in averaged_parameters(self.model):
            parameter.data.copy_(tensors[name])


def averaged_parameters(model: Albef) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that have a momentum copy: both towers and projections, not temperature or matching head."""
    for part in (*TOWERS, *HEADS):
        for name, parameter in getattr(model, part).named_parameters():
            yield f"{part}.{name}", parameter
