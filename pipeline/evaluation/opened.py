"""An export folder opened for a task: which can do it, the model that does it, how a split becomes its input."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline import captioner
from pipeline.checkpoint import load_weights
from pipeline.evaluation.export_input import given_answers, loader_of, tokenizer_of
from pipeline.evaluation.source import Source
from pipeline.exports import load_classification_model
from pipeline.models.answering import Answering
from pipeline.models.backbone import Backbone
from pipeline.models.blip_tasks import BlipPair
from pipeline.models.config import ModelConfig
from pipeline.models.pairs import own_way
from pipeline.setup import check_sizes
from pipeline.tasks.answer_list import AnswersConfig, check_fits
from pipeline.tasks.classes import ANSWERING, NLVR2, TEXTS, TOLD, Classes, classes_of
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.generative_vqa import AnsweringModel, RankedAnswers
from pipeline.trimming.trimmers import SMARTTRIM
from pipeline.weights.folders import load_model
from pipeline.weights.loaded import Loaded, lacks_matching
from pipeline.weights.mapping import fill

_IMPORTED: Mapping[str, tuple[str, ...]] = {"vqa_generative": ("albef_vqa", "blip_vqa"), "nlvr2": ("blip_nlvr",)}
"""Exports of `trimline import` that do a task of fine-tuning."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "retrieval": ("backbone", "blip_retrieval", "retrieval"),
    "zero_shot": ("backbone", "blip_retrieval"),
    **{name: (name, *_IMPORTED.get(name, ())) for name in TEXTS if name not in TOLD},
    "captioning": captioner.KINDS,
}
"""By task the exports that can do it, as their config.json calls them; METER's imports also do those of their heads."""


def open_export(
    folder: Path,
    task: str,
    split: str,
    tokenizer: Path | None = None,
    answers: Path | None = None,
    scored: bool = True,
) -> tuple[nn.Module, Source]:
    """The model of an export folder, and how the split becomes its input.

    Args:
        folder: The export.
        task: One of `KINDS`.
        split: Folder of indexed shards, or its URL.
        tokenizer: Folder of the tokenizer; None for the model's own.
        answers: JSON file with the list of answers, for imported weights, which have none.
        scored: Whether its scores are asked for; the layers of one without a matching head can be looked into.

    Raises:
        UserError: The folder holds no export or one of another kind, or its tokenizer is not there or does not fit.
    """
    _, described = load_weights(folder)
    _refuse_unable(folder, described, task)
    if task == "retrieval" and scored and lacks_matching(described):
        raise UserError(
            f"{folder} cannot do retrieval: its weights came without the head that matches, so it would rank by one "
            "that was drawn; import weights from pre-training, or fine-tuned for retrieval"
        )
    loaded = None if described["kind"] in TEXTS else load_model(folder)
    model: nn.Module = load_classification_model(folder)[0] if loaded is None else loaded.model
    config = model.backbone.config if isinstance(model, ClassificationModel) else model.config
    assert isinstance(config, ModelConfig)
    if task == "zero_shot" and config.backbone == "meter":
        lacking = "METER has no contrastive features; it can do retrieval, by matching"
        raise UserError(f"{folder} cannot do {task}: {lacking}")
    loader = loader_of(folder, described, config, task)
    check_sizes(config, loader)
    words = tokenizer_of(folder, tokenizer, config)
    if loaded is not None and task in ANSWERING:
        names = given_answers(folder, answers)
    elif answers is not None:
        raise UserError(f"--answers is for imported weights; {folder} has its own list or none; leave it out")
    if isinstance(model, Answering):
        model = AnsweringModel(
            model, None, SMARTTRIM, RankedAnswers.of(names, words.as_written(), AnswersConfig.candidates)
        )
    elif isinstance(model, BlipPair):
        model = ClassificationModel(model, None, classes=NLVR2)
    elif loaded is not None and task in loaded.heads:
        head = loaded.heads[task]
        if task in ANSWERING:
            check_fits(f"--answers {answers}", names, len(head["3.weight"]), "give that of these weights")
        model = _with_head(loaded, head, classes_of(task, names if task in ANSWERING else ()))
    return model.eval(), Source(split=split, loader=loader, tokenizer=words)


def _refuse_unable(folder: Path, described: Mapping[str, Any], task: str) -> None:
    kind = described.get("kind")
    able = [name for name, kinds in KINDS.items() if kind in kinds or name in described.get("heads", ())]
    if task not in able:
        said = f"--task {' or '.join(able)} can be done with it" if able else "no task is known for it"
        raise UserError(f"{folder} holds a {kind!r} model, which cannot do {task}; {said}")


def _with_head(loaded: Loaded, head: Mapping[str, Tensor], classes: Classes) -> ClassificationModel:
    """An imported backbone with the classifier that stands beside it."""
    backbone = cast(Backbone, loaded.model)
    if classes == NLVR2:
        backbone.pair = own_way(backbone)  # fine-tuned for pairs already: the second picture keeps its own type
    model = ClassificationModel(backbone, None, classes=classes)
    fill(model.cls_head.to(next(backbone.parameters()).dtype), head)
    return model
