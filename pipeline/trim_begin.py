"""What a trimming stage begins with: a model that the target is planned for, and the task that is trained.

Here alone methods differ: most put something that trims into the backbone; FTKD plans for the full model, its teacher,
and trains a student.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.loader import LoaderConfig
from pipeline.exports import load_classification_model
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.process import Process
from pipeline.pruning.elip import ElipConfig
from pipeline.setup import Inputs
from pipeline.tasks.classes import Classes
from pipeline.tasks.classification import ClassificationModel, ClassificationTask
from pipeline.tasks.fine_tuned import fine_tuned
from pipeline.tasks.ftkd import TaughtClassification
from pipeline.tasks.generative_vqa import AnsweringModel, AnsweringTask
from pipeline.tasks.retrieval_model import RetrievalModel, RetrievalTask
from pipeline.trim_config import TrimConfig
from pipeline.trim_plan import Examples, Plan
from pipeline.trimming.cost import Units
from pipeline.trimming.ftkd import LayerMap, begin_student, choose_layers
from pipeline.trimming.importance import head_importance, order_heads
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import Trimmers


@dataclass(frozen=True)
class Beginning:
    """How a model for one target begins.

    Attributes:
        config: Method and its settings.
        target: Wanted.
        teacher: Export folder of the fine-tuned full model, where it is looked at or begun from.
        inputs: Seed and normalisation.
        examples: To order heads by.
        process: Whose device it goes to.
        pruning: That the backbone keeps; None where it keeps none.
        classes: What the head tells apart.
        read: How the exported model reads data.
    """

    config: TrimConfig
    target: Target
    teacher: Path | None
    inputs: Inputs
    examples: Examples
    process: Process
    pruning: ElipConfig | None
    classes: Classes
    read: LoaderConfig

    def model(self, trained: Backbone) -> ClassificationModel:
        """The full model, one with what trims it, or the teacher of a student."""
        device = self.process.torch_device
        if self.target.is_full:
            return fine_tuned(trained, None, classes=self.classes, **self._kept).to(device)
        if self.config.trims is None:
            return self._teacher()
        begun = self._teacher() if self.config.init == "finetuned" else None
        backbone, config = trained if begun is None else begun.backbone, self.config
        model = fine_tuned(backbone, config.trims, config.policy, classes=self.classes, **self._kept).to(device)
        if begun is not None:
            model.cls_head = begun.cls_head
        if isinstance(model.trimmers, Trimmers) and model.trimmers.policy.heads == "ranked":
            self._order_heads(model.trimmers)
        return model

    @property
    def _kept(self) -> dict[str, Any]:
        """What a model has whatever trims it."""
        return ({} if self.pruning is None else {"pruning": self.pruning}) | self.config.of_task

    def task(self, model: ClassificationModel, plan: Plan, typical: Units) -> ClassificationTask:
        """What is trained of what `model` gave.

        Args:
            model: On the device.
            plan: What its target asks for.
            typical: Units of typical instances.
        """
        if self.config.trims is None and not self.target.is_full:
            return self._student_task(model, plan, typical)
        smarttrim = self.config.smarttrim
        if self.config.distill_weight is not None:
            smarttrim = replace(smarttrim, distill_weight=self.config.distill_weight)
        if isinstance(model, AnsweringModel):
            words = self.inputs.load_tokenizer()
            return AnsweringTask(model, words, self.inputs.normalise, plan.speed_up, smarttrim, typical)
        kind = RetrievalTask if isinstance(model, RetrievalModel) else ClassificationTask
        return kind(model, self.inputs.normalise, plan.speed_up, smarttrim, typical)

    def _student_task(self, teacher: ClassificationModel, plan: Plan, typical: Units) -> TaughtClassification:
        """A student with as many layers as the plan allows."""
        whole = teacher.backbone.config
        layers = choose_layers(teacher.cost_model(), typical, plan.speed_up)
        student = ClassificationModel(build_model(layers.cut(whole)), None, whole=whole, classes=self.classes)
        begin_student(student, teacher, LayerMap(student.backbone, teacher.backbone))
        student = student.to(self.process.torch_device)
        normalise, ftkd = self.inputs.normalise, self.config.ftkd
        return TaughtClassification(student, teacher, normalise, plan.speed_up, ftkd, typical)

    def _teacher(self) -> ClassificationModel:
        assert self.teacher is not None, "a method that looks at the full model is given it"
        model = load_classification_model(self.teacher)[0]
        if model.classes != self.classes:
            raise UserError(
                f"{self.teacher} tells {len(model.classes.names)} classes of {model.classes.task} apart, this stage "
                f"{len(self.classes.names)} of {self.classes.task}, or others; fine-tune the full model on its data"
            )
        return model.to(self.process.torch_device)

    def _order_heads(self, trimmers: Trimmers) -> None:
        """Settles which heads go first, the same on every process."""
        config = self.config
        assert config.method in ("head_random", "grad_layer", "grad_all")
        importance: dict[str, Tensor] = {}
        if config.needs_teacher:
            parts = self.examples.parts(self.examples.draw(config.heads.instances), self.process.torch_device)
            normalise = self.inputs.normalise
            batches = ((normalise(part.pixels), part.token_ids, part.token_mask) for part in parts)
            importance = head_importance(self._teacher(), batches)
        order_heads(trimmers, config.method, self.inputs.seed, importance)
