"""The model of a task around a backbone."""

from typing import Any

from pipeline.models.backbone import Backbone
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classes import Captions, Classes, InBatch
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.comparing import RetrievalConfig
from pipeline.tasks.generative_vqa import AnsweringModel, RankedAnswers
from pipeline.tasks.retrieval_model import RetrievalModel
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TrimmerConfig
from pipeline.trimming.vision_only import ReductionConfig

_DEFAULT = RetrievalConfig()


def fine_tuned(
    backbone: Backbone,
    trimmers: TrimmerConfig | ReductionConfig | None,
    policy: Policy = SMARTTRIM,
    *,
    classes: Classes,
    retrieval: RetrievalConfig = _DEFAULT,
    **more: Any,
) -> ClassificationModel:
    """A model that learns what `classes` tells apart; arguments as of `ClassificationModel`, `retrieval` of that task.

    Raises:
        UserError: The backbone cannot do the task.
    """
    if isinstance(classes, InBatch | Captions | RankedAnswers):
        assert not isinstance(trimmers, ReductionConfig), "`TrimConfig` refuses them for these tasks"
        if isinstance(classes, InBatch):
            return RetrievalModel(backbone, trimmers, policy, retrieval)
        if isinstance(classes, Captions):
            return CaptioningModel(backbone, trimmers, policy, classes)
        return AnsweringModel(backbone, trimmers, policy, classes)
    return ClassificationModel(backbone, trimmers, policy, classes=classes, **more)
