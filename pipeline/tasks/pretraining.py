"""Pre-training of every backbone: one task around the backbone's own step (`pipeline/tasks/online.py`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch
from pipeline.models.backbone import Backbone
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.itc import FeatureQueue
from pipeline.objectives.mlm import Vocabulary
from pipeline.objectives.momentum import MomentumTower
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.contrasting import CachedContrast, Collected, Contrasting, by_chance, cached_contrasts, chances
from pipeline.tasks.online import STEPS, Memory, OnlineModel
from pipeline.tasks.task import Losses, with_prefix, without_prefix


class Pretraining:
    """Task: online model and, where the backbone has one, momentum tower in `module`; a queue beside it.

    Args:
        model: The online model.
        objectives: Constants.
        pruning: Of the online tower (and of the momentum tower if it says so).
        words: Mask id and vocabulary size.
        normalise: Maps uint8 pixels to the model's input.
        generator: Draws the queue's first content.
    """

    def __init__(
        self,
        model: Backbone,
        objectives: ObjectiveConfig,
        pruning: PruningConfig,
        words: Vocabulary,
        normalise: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        pruning.check(model.config.vision.depth, model.config.vision.patches)
        self.online: OnlineModel = STEPS[model.config.backbone](model, objectives, pruning, words)
        self.module: nn.Module = self.online
        self.model = model
        self.objectives = objectives
        self.normalise = normalise
        self.memory: Memory | None = None
        if model.averaged:
            device = next(model.parameters()).device
            queue = FeatureQueue(model.config.embed, objectives.queue, generator, device)
            self.memory = Memory(MomentumTower(model, objectives.momentum), queue)
            # A frozen part of what is trained: the engine saves it with the rest, and splits it under ZeRO 3.
            self.online.momentum = self.memory.teacher.model

    def losses_of_parts(
        self, forward: Callable[..., Any], parts: Sequence[ImageTextBatch], progress: float
    ) -> Iterator[Losses]:
        """The online model's losses; contrast is among all parts if it is to be cached, else among each part."""
        if len(parts) == 1 or not self.objectives.contrast_cache:
            yield from (self.losses(forward, part, progress) for part in parts)
            return
        device, seeds = parts[0].pixels.device, chances(len(parts))
        cached = self._cached(forward, parts, seeds, self._alpha(progress))
        for part, contrast, seed in zip(parts, cached, seeds, strict=True):
            with by_chance(seed, device):
                losses = self.losses(forward, part, progress, contrast)
            yield losses

    @torch.no_grad()
    def _cached(
        self, forward: Callable[..., Any], parts: Sequence[ImageTextBatch], seeds: Sequence[int], alpha: float
    ) -> list[CachedContrast]:
        collected = Collected([])
        for part, seed in zip(parts, seeds, strict=True):
            with by_chance(seed, part.pixels.device):
                self._named(forward, part, alpha, collected)
        contrast = partial(self.online.contrast, memory=self.memory, alpha=alpha)
        return cached_contrasts(collected.seen, contrast, self.model.temp)

    def losses(
        self,
        forward: Callable[..., Any],
        batch: ImageTextBatch,
        progress: float,
        contrasting: Contrasting | None = None,
    ) -> Losses:
        """Those of one part.

        Args:
            forward: See `losses_of_parts`.
            batch: The part.
            progress: See `losses_of_parts`.
            contrasting: Gives contrast from the part's features; None for that among the part.
        """
        alpha = self._alpha(progress)
        named = self._named(forward, batch, alpha, contrasting)
        scalars: dict[str, Tensor | float] = {}
        if self.model.has_contrast:
            scalars["temperature"] = self.model.temp.detach().clone().squeeze()
        if self.memory is not None:
            scalars["alpha"] = alpha
        return Losses(torch.stack(list(named.values())).sum(), named, scalars)

    def _named(
        self, forward: Callable[..., Any], batch: ImageTextBatch, alpha: float, contrasting: Contrasting | None
    ) -> dict[str, Tensor]:
        given = () if contrasting is None else (contrasting,)
        draws = self.online.draw(batch)
        named: dict[str, Tensor] = forward(self.normalise(batch.pixels), batch, draws, self.memory, alpha, *given)
        return named

    @torch.no_grad()
    def fixed_losses(self, forward: Callable[..., Any], batch: ImageTextBatch) -> dict[str, Tensor]:
        """The losses of a batch that does not change, to compare trainings by: nothing of the training moves.

        Contrast is among this batch alone, without a queue and with hard labels, and matching draws its negatives from
        all of it: then it is the same task at any time of a training, and for trainings with any batch and workers.
        """
        memory = None
        if self.memory is not None:
            empty = FeatureQueue(self.model.config.embed, 0, torch.Generator(), batch.pixels.device)
            memory = Memory(self.memory.teacher, empty)
        asked = self.online.objectives
        self.online.objectives = replace(asked, negatives="global")
        try:
            drawn = self.online.draw(batch)
            named: dict[str, Tensor] = forward(self.normalise(batch.pixels), batch, drawn, memory, 0.0)
        finally:
            self.online.objectives = asked
        return named

    def _alpha(self, progress: float) -> float:
        ramp = self.objectives.alpha_ramp
        return self.objectives.alpha * (min(1.0, progress / ramp) if ramp else 1.0)

    def before_update(self, progress: float) -> None:
        """The momentum tower follows the online model."""
        if self.memory is not None:
            self.memory.queue.active = progress >= self.objectives.queue_start
            self.memory.teacher.update(self.model)

    def after_update(self, progress: float) -> None:
        """The queue takes the features of the whole update."""
        if self.memory is not None:
            self.memory.queue.take()

    def drop_update(self) -> None:
        """Its features do not come into the queue; the momentum tower has followed the same weights once more."""
        if self.memory is not None:
            self.memory.queue.drop()

    def tensors(self) -> dict[str, Tensor]:
        """The queue."""
        return {} if self.memory is None else with_prefix("queue", self.memory.queue.tensors())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the queue."""
        if self.memory is not None:
            self.memory.queue.load(without_prefix("queue", tensors))
