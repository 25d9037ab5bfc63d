"""The survivors stage: draws which patches and words are left, for several sentences on the same picture."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import TextKind
from pipeline.evaluation.config import EvaluateConfig, Trained, source_of
from pipeline.exports import load_backbone, load_classification_model, method_of, task_text
from pipeline.measure.survivors import (
    Picture,
    overlay,
    pruned_sights,
    save_pictures,
    save_survivors,
    text_overlay,
    trimmed_sights,
)
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.setup import Inputs
from pipeline.train import Stage
from pipeline.trimming.methods import SMART
from pipeline.trimming.target import Target

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
    batch, rows = _chosen(config, trained, inputs)
    firsts = [numbers[0] for numbers in rows]
    pictures = save_pictures(stage.folder, batch.pixels, firsts)
    pixels = inputs.normalise(batch.pixels)
    if trained.pretrained is not None and pruning.looks:
        _draw_pruned(trained, pruning, batch, pixels, rows, pictures)
    for folder in trained.trimmed.values():
        _draw_trimmed(folder, config, trained, inputs, pictures)
    save_survivors(stage.folder, pictures)
    return len(pictures)


def _chosen(config: EvaluateConfig, trained: Trained, inputs: Inputs) -> tuple[ImageTextBatch, list[list[int]]]:
    """A batch that holds the pictures, and the rows of each picture in it."""
    splits = config.statement_splits if trained.trimmed else config.retrieval_splits
    split = config.picture_split or splits[0]
    limit = config.pictures * 8
    text: TextKind = "captions"
    for folder in trained.trimmed.values():
        text = task_text(folder)  # the same of all models of a run
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
    for picture, row in _each(rows, pictures):
        picture["sentences"].append(
            overlay(batch, row, model.config.vision.grid, sights, model="pretrain", tokens=[], text_steps=[])
        )


@torch.no_grad()
def _draw_trimmed(
    folder: Path, config: EvaluateConfig, trained: Trained, inputs: Inputs, pictures: list[Picture]
) -> None:
    model, described = load_classification_model(folder)
    if model.trimmers is None:
        return
    batch, rows = _chosen(config, trained, inputs.sized_for(model.backbone.config))  # the same samples
    image, text, macs_B = trimmed_sights(model, inputs.normalise(batch.pixels), batch)
    tokenizer = inputs.load_tokenizer()
    for picture, row in _each(rows, pictures):
        words = text_overlay(batch, row, tokenizer, text)
        named = "" if method_of(described) == SMART else f"{method_of(described)} "
        target = Target.parse(described["target"]).name
        more = {"model": f"{named}{target}", "gmacs": float(macs_B[row]) / 1e9, **words}
        picture["sentences"].append(overlay(batch, row, model.backbone.config.vision.grid, image, **more))
