"""An export folder opened for a task: which can do it, the model that does it, how a split becomes its input."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from data_prep.errors import UserError
from pipeline import captioner
from pipeline.checkpoint import load_weights
from pipeline.evaluation.export_input import given_answers, loader_of, tokenizer_of
from pipeline.evaluation.source import Source
from pipeline.exports import load_classification_model
from pipeline.models.blip_tasks import BlipAnswering, BlipPair
from pipeline.models.config import ModelConfig
from pipeline.setup import check_sizes
from pipeline.tasks.classes import NLVR2, TEXTS, TOLD
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.generative_vqa import AnsweringModel
from pipeline.trimming.trimmers import SMARTTRIM
from pipeline.weights.folders import load_model

_IMPORTED: Mapping[str, tuple[str, ...]] = {"vqa_generative": ("blip_vqa",), "nlvr2": ("blip_nlvr",)}
"""Exports of `trimline import` that do a task of fine-tuning."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "retrieval": ("backbone", "blip_retrieval", "retrieval"),
    "zero_shot": ("backbone", "blip_retrieval"),
    **{name: (name, *_IMPORTED.get(name, ())) for name in TEXTS if name not in TOLD},
    "captioning": captioner.KINDS,
}
"""By task the exports that can do it, as their config.json calls them."""


def open_export(
    folder: Path, task: str, split: str, tokenizer: Path | None = None, answers: Path | None = None
) -> tuple[nn.Module, Source]:
    """The model of an export folder, and how the split becomes its input.

    Args:
        folder: The export.
        task: One of `KINDS`.
        split: Folder of indexed shards, or its URL.
        tokenizer: Folder of the tokenizer; None for the model's own.
        answers: JSON file with the list of answers, for imported weights, which have none.

    Raises:
        UserError: The folder holds no export or one of another kind, or its tokenizer is not there or does not fit.
    """
    _, described = load_weights(folder)
    kind = described.get("kind")
    if kind not in KINDS[task]:
        able = [name for name, kinds in KINDS.items() if kind in kinds]
        said = f"--task {' or '.join(able)} can be done with it" if able else "no task is known for it"
        raise UserError(f"{folder} holds a {kind!r} model, which cannot do {task}; {said}")
    model: nn.Module = load_classification_model(folder)[0] if kind in TEXTS else load_model(folder).model
    config = model.backbone.config if isinstance(model, ClassificationModel) else model.config
    assert isinstance(config, ModelConfig)
    if task == "zero_shot" and config.backbone == "meter":
        lacking = "METER has no contrastive features; it can do retrieval, by matching"
        raise UserError(f"{folder} cannot do {task}: {lacking}")
    loader = loader_of(folder, described, config)
    check_sizes(config, loader)
    words = tokenizer_of(folder, described["kind"], tokenizer, config)
    if isinstance(model, BlipAnswering):
        model = AnsweringModel(model, None, SMARTTRIM, given_answers(folder, answers, words)).eval()
    elif answers is not None:
        raise UserError(f"--answers is for imported weights; {folder} has its own list or none; leave it out")
    if isinstance(model, BlipPair):
        model = ClassificationModel(model, None, classes=NLVR2).eval()
    return model, Source(split=split, loader=loader, tokenizer=words)
