"""FTKD: fine-tuning a student of fewer layers under its teacher.

B batch, L text tokens, A classes or answers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.measure.layer_watch import LayerWatch
from pipeline.tasks.classification import Answers, ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.task import Losses
from pipeline.trimming.cost import Units
from pipeline.trimming.ftkd import FtkdConfig, LayerMap, attention_divergence, hidden_distance


class TaughtClassification(ClassificationTask):
    """The task's loss, and what the teacher says, sees and attends to.

    Args:
        student: With fewer layers.
        teacher: The fine-tuned full model, which is not changed.
        normalise: Maps uint8 pixels to the model's input.
        target: Ratio of MACs that the student was cut for.
        config: Weights.
        typical: Units of typical instances.
    """

    def __init__(
        self,
        student: ClassificationModel,
        teacher: ClassificationModel,
        normalise: Callable[[Tensor], Tensor],
        target: float,
        config: FtkdConfig,
        typical: Units,
    ) -> None:
        super().__init__(student, normalise, target, SmartTrimConfig(), typical)
        self.teacher = teacher.eval().requires_grad_(False)
        self.weights = config
        self.layers = LayerMap(student.backbone, teacher.backbone)

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """The task's loss, and three distances from the teacher."""
        inputs = self.normalise(batch.pixels), batch.token_ids, batch.token_mask
        own = LayerWatch(frozenset(self.layers.hidden), frozenset(self.layers.attention))
        answers: Answers = forward(*inputs, None, True, own)
        targets = self.classes.targets(batch)
        assert answers.full_BA is not None
        seen = LayerWatch(frozenset(self.layers.hidden.values()), frozenset(self.layers.attention.values()))
        with torch.no_grad():
            taught_BA = self.teacher.classify(*inputs, [seen])
        named = {
            "task": self.classes.loss(answers.full_BA, targets),
            "divergence": self.classes.divergence(answers.full_BA, taught_BA),
            "hidden": hidden_distance(answers.watched, seen.seen, self.layers, batch.token_mask),
            "attention": attention_divergence(answers.watched, seen.seen, self.layers, batch.token_mask),
        }
        by = self.weights.logits_weight, self.weights.hidden_weight, self.weights.attention_weight
        taught = [named["divergence"], named["hidden"], named["attention"]]
        total = named["task"] + sum(weight * loss for weight, loss in zip(by, taught, strict=True))
        return Losses(total, named, {"accuracy": self.classes.accuracy(answers.full_BA, targets)})
