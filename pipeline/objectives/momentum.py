"""The momentum tower: a slowly following copy of the parts that give soft labels."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.held import held, release
from pipeline.models.backbone import Backbone


class MomentumTower:
    """Exponential moving average of a backbone's encoders and projections.

    Its `model` is to be a frozen part of the module that is trained: then the engine saves it, and ZeRO 3 splits it as
    it splits the online one. Each process moves the elements that it holds, and nothing is gathered for that.

    Args:
        model: The online model; the copy begins equal to it.
        momentum: μ in ``p_m <- μ p_m + (1 - μ) p``.
    """

    def __init__(self, model: Backbone, momentum: float = 0.995) -> None:
        self.momentum = momentum
        self.model = copy.deepcopy(model).requires_grad_(False)
        # Heads and decoders that give no labels would only take memory.
        for name in [name for name, _ in self.model.named_children() if name not in model.averaged]:
            delattr(self.model, name)

    @torch.no_grad()
    def update(self, online: Backbone) -> None:
        """Follow the online model by one step."""
        release([p for _, p in averaged_parameters(self.model)])
        mine: list[Tensor] = [held(p) for _, p in averaged_parameters(self.model)]
        theirs = [held(p).to(m.dtype) for (_, p), m in zip(averaged_parameters(online), mine, strict=True)]
        torch._foreach_lerp_(mine, theirs, 1 - self.momentum)


def averaged_parameters(model: Backbone) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that have a momentum copy (`Backbone.averaged`)."""
    for part in model.averaged:
        for name, parameter in getattr(model, part).named_parameters():
            yield f"{part}.{name}", parameter
