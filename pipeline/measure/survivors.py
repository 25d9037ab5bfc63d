"""Which patches and words survive: pictures and numbers for the report's overlays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_prep.files import write_atomic, write_json
from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import InBlock, Step, Streams
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import Decision, MaskedTrimming, threshold

Picture = dict[str, Any]


@dataclass(frozen=True)
class Sight:
    """What was left of a stream at a step: origins (B, N) and which of them are there."""

    part: str
    layer: int
    origin_BN: Tensor
    present_BN: Tensor | None


class Watch:
    """An intervention that only looks: the image stream where its number of tokens changed."""

    looks_at_text = False

    def __init__(self) -> None:
        self.sights: list[Sight] = []

    def before(self, step: Step, streams: Streams) -> tuple[Streams, dict[str, InBlock]]:
        """Note the origins."""
        stream = streams[step.advances[0].stream]
        if step.part == "vision" and stream.origin is not None:
            known = self.sights[-1].origin_BN.shape[1] if self.sights else -1
            if stream.origin.shape[1] != known:
                self.sights.append(Sight(step.part, step.layer, stream.origin, stream.present))
        return streams, {}


@torch.no_grad()
def pruned_sights(model: Backbone, config: PruningConfig, pixels: Tensor, batch: ImageTextBatch) -> list[Sight]:
    """What pre-training's pruning keeps of each picture (ELIP: for its sentence), wherever tokens go."""
    text = model.encode_text(batch.token_ids, batch.token_mask)
    pruning, watch = config.begin(model.visual_encoder, model.sentence(text), batch.draw_seeds), Watch()
    model.encode_image(pixels, [watch] if pruning is None else [pruning, watch])
    return watch.sights


@torch.no_grad()
def trimmed_sights(
    model: ClassificationModel, pixels: Tensor, batch: ImageTextBatch
) -> tuple[list[Sight], list[Sight], Tensor]:
    """What is kept of each picture and sentence, layer by layer, and the MACs of each instance."""
    trimming, watch = model.trimming(batch.token_ids, batch.token_mask, threshold), Watch()
    assert trimming is not None
    model.classify(pixels, batch.token_ids, batch.token_mask, [trimming, watch])
    macs_B = model.macs(trimming.decisions, units_of(model.backbone, batch.token_mask))
    if not isinstance(trimming, MaskedTrimming):
        return watch.sights, [], macs_B
    image: list[Sight] = []
    text: list[Sight] = []
    for name, decision in trimming.decisions.items():
        part, layer, _ = name.split("_")
        (image if decision.group == "vision" else text).append(_sight(part, int(layer), decision))
    return image, text, macs_B


def _sight(part: str, layer: int, decision: Decision) -> Sight:
    assert decision.origin is not None
    return Sight(part, layer, decision.origin, decision.present_BN)


def told_sights(decisions: Mapping[str, Decision]) -> list[Sight]:
    """What a captioner kept of each picture, layer by layer, from the decisions of its telling."""
    sights = []
    for name, decision in decisions.items():
        assert decision.origin is not None and decision.offsets is not None
        lengths_B = torch.tensor(decision.offsets).diff()
        origin_BN = pad_sequence(decision.origin.split(lengths_B.tolist()), batch_first=True)
        part, layer, _ = name.split("_")
        sights.append(Sight(part, int(layer), origin_BN, torch.arange(origin_BN.shape[1]) < lengths_B[:, None]))
    return sights


def overlay(
    batch: ImageTextBatch,
    row: int,
    grid: tuple[int, int],
    sights: list[Sight],
    right: str = "",
    **more: Any,
) -> dict[str, Any]:
    """One sentence of a picture, in the form that the report reads; layers are counted from 0 where "layer" is."""
    steps = [
        {
            "name": f"{sight.part} layer {sight.layer}",
            "layer": sight.layer,
            "grid": list(grid),
            "kept": _kept(sight, row),
            "merged": _merged(sight, row),
        }
        for sight in sights
    ]
    return {"text": batch.texts[row], "label": right or None, "steps": steps, **more}


def text_overlay(batch: ImageTextBatch, row: int, tokenizer: Tokenizer, sights: list[Sight]) -> dict[str, Any]:
    """The words of a sentence and which of them survive."""
    length = int(batch.token_mask[row].sum())
    steps = [
        {"name": f"{sight.part} layer {sight.layer}", "layer": sight.layer, "kept": [0, *_kept(sight, row)]}
        for sight in sights
    ]
    return {"tokens": tokenizer.tokens(batch.token_ids[row, :length].tolist()), "text_steps": steps}


def _kept(sight: Sight, row: int) -> list[int]:
    """Patch or word numbers that are there; CLS (first) and merged tokens are left out."""
    origin = sight.origin_BN[row, 1:]
    there = torch.ones_like(origin, dtype=torch.bool)
    if sight.present_BN is not None:
        there = sight.present_BN[row, 1:].bool()
    return sorted(int(number) for number in origin[there & (origin >= 0)])


def _merged(sight: Sight, row: int) -> int:
    """How many tokens are there that others were merged into."""
    merged = sight.origin_BN[row] < -1
    if sight.present_BN is not None:
        merged = merged & sight.present_BN[row].bool()
    return int(merged.sum())


def save_pictures(folder: Path, pixels_B3HW: Tensor, numbers: list[int]) -> list[Picture]:
    """Write pictures as PNG; returns name and size of each."""
    pictures = []
    for number in numbers:
        name = f"picture_{number}.png"
        height, width = write_picture(folder / name, pixels_B3HW[number])
        pictures.append({"image": name, "width": width, "height": height, "sentences": []})
    return pictures


def write_picture(path: Path, pixels_3HW: Tensor, least_side: int = 256) -> tuple[int, int]:
    """Write a picture as PNG, a small one enlarged by a whole factor; returns its height and width there.

    Args:
        path: The file.
        pixels_3HW: uint8, RGB.
        least_side: What a small one's shorter side reaches.
    """
    image = np.ascontiguousarray(pixels_3HW.permute(1, 2, 0).numpy()[..., ::-1])
    factor = max(1, math.ceil(least_side / min(image.shape[:2])))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    write_atomic(path, cv2.imencode(".png", image)[1].tobytes())
    return image.shape[0], image.shape[1]


def save_survivors(folder: Path, pictures: list[Picture]) -> None:
    """Write survivors.json."""
    write_json(folder / "survivors.json", pictures)
