"""The survivors stage: draws which patches and words are left, for several sentences on the same picture."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.files import read_described
from pipeline.captioner import Captioner, is_captioner
from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import EveryImage, TextKind
from pipeline.evaluation.config import EvaluateConfig, Trained, source_of
from pipeline.exports import load_backbone, load_classification_model, method_of, task_text
from pipeline.measure.survivors import (
    Picture,
    overlay,
    pruned_sights,
    save_pictures,
    save_survivors,
    text_overlay,
    told_sights,
    trimmed_sights,
)
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tasks.classes import SNLI_VE, STATEMENT, right_answer
from pipeline.trimming.methods import SMART
from pipeline.trimming.target import Target

log = logging.getLogger(__name__)

SENTENCES = 3


def draw_survivors(
    config: EvaluateConfig, pruning: PruningConfig, trained: Trained, inputs: Inputs, stage: Stage
) -> int:
    """Write pictures and survivors.json into the stage's folder.

    Args:
        config: How many pictures, from which split.
        pruning: Of pre-training, drawn where it looks at what it leaves out.
        trained: Exports to look at.
        inputs: Data, tokenizer, loader.
        stage: Where to write.

    Returns:
        How many pictures were drawn; none of pairs.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    if not config.pictures or "pairs" in {task_text(folder) for folder in trained.trimmed.values()}:
        save_survivors(stage.folder, [])
        return 0
    tells = any(is_captioner(folder) for folder in trained.trimmed.values())
    batch, rows = _chosen(config, trained, inputs, EveryImage() if tells else None)
    firsts = [numbers[0] for numbers in rows]
    pictures = save_pictures(stage.folder, batch.pixels, firsts)
    pixels = inputs.normalise(batch.pixels)
    if tells and pruning.looks:
        log.info("pictures are drawn as captioners tell of them, without what pre-training's pruning keeps")
    elif trained.pretrained is not None and pruning.looks:
        _draw_pruned(trained, pruning, batch, pixels, rows, pictures)
    for folder in trained.trimmed.values():
        draw = _draw_told if is_captioner(folder) else _draw_trimmed
        draw(folder, config, trained, inputs, pictures)
    save_survivors(stage.folder, pictures)
    return len(pictures)


def _chosen(
    config: EvaluateConfig, trained: Trained, inputs: Inputs, pictures: EveryImage | None
) -> tuple[ImageTextBatch, list[list[int]]]:
    """A batch that holds the pictures, and the rows of each picture in it; `pictures` reads them without texts."""
    splits = config.statement_splits if trained.trimmed else config.retrieval_splits
    split = config.picture_split or splits[0]
    limit = config.pictures * (8 if pictures is None else 1)
    text: TextKind = pictures or "captions"
    for folder in trained.trimmed.values():
        text = pictures or task_text(folder)  # the same of all models of a run
    batch = next(iter(source_of(inputs, split, inputs.load_tokenizer()).batches(text, limit, Process(), limit)))
    rows: dict[int, list[int]] = {}
    for row, sample in enumerate(batch.sample_ids.tolist()):
        rows.setdefault(sample, []).append(row)
    return batch, [numbers[:SENTENCES] for numbers in list(rows.values())[: config.pictures]]


def _each(rows: list[list[int]], pictures: list[Picture]) -> Iterator[tuple[Picture, int]]:
    for picture, numbers in zip(pictures, rows, strict=True):
        for number in numbers:
            yield picture, number


def _draw_pruned(
    trained: Trained,
    pruning: PruningConfig,
    batch: ImageTextBatch,
    pixels: Tensor,
    rows: list[list[int]],
    pictures: list[Picture],
) -> None:
    assert trained.pretrained is not None
    model = load_backbone(trained.pretrained)
    sights = pruned_sights(model, pruning, pixels, batch)
    related = "relations" in {task_text(folder) for folder in trained.trimmed.values()}
    classes = SNLI_VE if related else STATEMENT
    for picture, row in _each(rows, pictures):
        right = right_answer(classes, batch, row)
        more: Picture = {"model": "pretrain", "tokens": [], "text_steps": []}
        picture["sentences"].append(overlay(batch, row, model.config.vision.grid, sights, right, **more))


@torch.no_grad()
def _draw_trimmed(
    folder: Path, config: EvaluateConfig, trained: Trained, inputs: Inputs, pictures: list[Picture]
) -> None:
    model, described = load_classification_model(folder)
    if model.trimmers is None:
        return
    batch, rows = _chosen(config, trained, inputs.of_export(described), None)  # the same samples
    image, text, macs_B = trimmed_sights(model, inputs.normalise(batch.pixels), batch)
    tokenizer, named = inputs.load_tokenizer(), _named(described)
    for picture, row in _each(rows, pictures):
        words = text_overlay(batch, row, tokenizer, text)
        right = right_answer(model.classes, batch, row)
        more: Picture = {"model": named, "gmacs": float(macs_B[row]) / 1e9, **words}
        picture["sentences"].append(overlay(batch, row, model.backbone.config.vision.grid, image, right, **more))


@torch.no_grad()
def _draw_told(folder: Path, config: EvaluateConfig, trained: Trained, inputs: Inputs, pictures: list[Picture]) -> None:
    """Of a captioner: what it kept while it told, beside its own caption."""
    captioner = Captioner.from_pretrained(folder)
    model = captioner.model
    if model.trimmers is None:
        return
    batch, rows = _chosen(config, trained, inputs.sized_for(model.backbone.config), EveryImage())  # the same samples
    told = captioner.tell(inputs.normalise(batch.pixels))
    sights, macs_B = told_sights(told.decisions), model.macs(told.decisions, model.units(told))
    said, named = replace(batch, texts=captioner.words(told)), _named(read_described(folder / "config.json"))
    for picture, row in _each(rows, pictures):
        more: Picture = {"model": named, "gmacs": float(macs_B[row]) / 1e9, "tokens": [], "text_steps": []}
        picture["sentences"].append(overlay(said, row, model.backbone.config.vision.grid, sights, **more))


def _named(described: dict[str, Any]) -> str:
    method, target = method_of(described), Target.parse(described["target"]).name
    return target if method == SMART else f"{method} {target}"
