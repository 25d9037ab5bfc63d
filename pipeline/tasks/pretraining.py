"""Pre-training of every backbone: one task around the backbone's own step (`pipeline/tasks/online.py`)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch
from pipeline.models.backbone import Backbone
from pipeline.objectives.itc import FeatureQueue
from pipeline.objectives.mlm import Vocabulary
from pipeline.objectives.momentum import MomentumTower
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.online import STEPS, Memory, ObjectiveConfig, OnlineModel
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

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """The online model's losses."""
        ramp = self.objectives.alpha_ramp
        alpha = self.objectives.alpha * (min(1.0, progress / ramp) if ramp else 1.0)
        named = forward(self.normalise(batch.pixels), batch, self.online.draw(batch), self.memory, alpha)
        scalars: dict[str, Tensor | float] = {}
        if self.model.has_contrast:
            scalars["temperature"] = self.model.temp.detach().clone().squeeze()
        if self.memory is not None:
            scalars["alpha"] = alpha
        return Losses(torch.stack(list(named.values())).sum(), named, scalars)

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
