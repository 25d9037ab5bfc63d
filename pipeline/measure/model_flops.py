"""Multiply-accumulates (MACs) of a whole model on a task, by module: what `trimline flops` prints.

One instance without padding, matrix products only, as `measure.flops`. Keys and values of an image or a question are
made once, however many tokens or beams attend to them.

n tokens of a stream with CLS, L text tokens, P patches, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from data_prep.errors import UserError
from pipeline.limits import at_least
from pipeline.measure.flops import (
    StepCounts,
    joining_macs,
    key_value_macs,
    linear_macs,
    patch_macs,
    schedule_macs,
)
from pipeline.models.albef import AlbefAnswering
from pipeline.models.answering import Answering
from pipeline.models.backbone import Backbone
from pipeline.models.blip_tasks import BlipAnswering, BlipCaptioner, BlipPair
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.models.heads import TaskClassifier
from pipeline.models.schedule import Step, site
from pipeline.models.text import TextTower
from pipeline.trimming.trimmers import block_size

Parts = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FlopsConfig:
    """What is counted.

    Attributes:
        task: ``retrieval`` (one pair: both encoders, matching), ``vqa``, ``nlvr2`` (two images), ``caption``.
        text_length: Tokens of the text, special ones included; of a caption, its prompt with [DEC].
        answers: Classes of METER's VQA head.
        new_tokens: Tokens that a decoder writes (ALBEF's and BLIP's ``vqa``, BLIP's ``caption``).
        beams: Hypotheses that it carries along.
    """

    task: str
    text_length: int
    answers: int = 3129
    new_tokens: int = 4
    beams: int = 3

    def __post_init__(self) -> None:
        at_least(self, "flops", 1, "text_length", "answers", "new_tokens", "beams")


def count_macs(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """MACs of ``vision``, ``text``, ``fusion``, ``head``, ``trimmers`` and their ``total``.

    Raises:
        UserError: The backbone does not do the task, or the text is too long for it.
    """
    counters = _COUNTERS[config.backbone]
    if flops.task not in counters:
        raise UserError(f"flops knows {config.backbone} for {', '.join(counters)}, not for {flops.task!r}")
    if flops.text_length > config.text.longest:
        raise UserError(f"flops.text_length={flops.text_length} is more than the {config.text.longest} of the model")
    with torch.device("meta"):
        parts = counters[flops.task](config, flops)
    parts = {"vision": 0.0, "text": 0.0, "fusion": 0.0, "head": 0.0, "trimmers": 0.0, **parts}
    return {**parts, "total": sum(parts.values())}


def steps_macs(steps: Sequence[Step], tokens: Mapping[str, int]) -> float:
    """MACs of steps with all heads, each stream keeping its tokens."""
    counts = {}
    for step in steps:
        for advance in step.advances:
            heads = torch.tensor(block_size(advance)[1], dtype=torch.float64, device="cpu")
            n = torch.tensor(tokens[advance.stream], dtype=torch.float64, device="cpu")
            source = torch.tensor(sum(tokens[name] for name in advance.sources), dtype=torch.float64, device="cpu")
            counts[site(step, advance)] = StepCounts(n, source, heads, heads)
    return float(schedule_macs(steps, counts)) if steps else 0.0


def _encoders(model: Backbone, text_length: int) -> Parts:
    """Vision tower and text-only layers."""
    patches = model.config.vision.patches
    vision = patch_macs(model.config.vision) + steps_macs(model.visual_encoder.steps, {"image": 1 + patches})
    return {"vision": vision, "text": steps_macs(model.text_steps, {"text": text_length})}


def _streams(model: Backbone, text_length: int) -> dict[str, int]:
    image = 1 + model.config.vision.patches
    return {"text": text_length, "image": image, "other": image}


def _retrieval(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """A pair through encoders, contrast and matching, as far as the backbone has them."""
    model = build_model(config)
    parts = _encoders(model, flops.text_length)
    if model.fusion_steps:
        parts["fusion"] = _fusion(model, flops.text_length)
        parts["head"] = linear_macs(model.itm_head)
    if model.has_contrast:
        parts["head"] = parts.get("head", 0.0) + linear_macs(model.vision_proj) + linear_macs(model.text_proj)
    return parts


def _fusion(model: Backbone, text_length: int) -> float:
    macs = steps_macs(model.fusion_steps, _streams(model, text_length))
    streams = {
        name: torch.tensor(n, dtype=torch.float64, device="cpu") for name, n in _streams(model, text_length).items()
    }
    return macs + float(joining_macs(model, streams["text"], streams["image"]))


def _meter_vqa(config: ModelConfig, flops: FlopsConfig) -> Parts:
    model, features = build_model(config), 2 * config.fusion.width
    head = linear_macs(TaskClassifier(features, features, flops.answers))
    return {**_encoders(model, flops.text_length), "fusion": _fusion(model, flops.text_length), "head": head}


def _meter_nlvr2(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """Both images through the tower, and the text fused with each."""
    model, features = build_model(config), 2 * config.fusion.width
    parts = _encoders(model, flops.text_length)
    fusion = 2 * _fusion(model, flops.text_length)
    return {
        **parts,
        "vision": 2 * parts["vision"],
        "fusion": fusion,
        "head": linear_macs(TaskClassifier(2 * features, features, 2)),
    }


def _blip_nlvr2(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """Both images through the tower; the grounded text attends to both."""
    model = BlipPair(config)
    vision = 2 * _encoders(model, flops.text_length)["vision"]
    fusion = steps_macs(model.fusion_steps, _streams(model, flops.text_length))
    return {"vision": vision, "fusion": fusion, "head": linear_macs(model.cls_head)}


def _albef_vqa(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """The question alone and with the image, then a decoder that reads it."""
    model = AlbefAnswering(config)
    return {**_encoders(model, flops.text_length), **_answered(model, flops)}


def _blip_vqa(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """The grounded question, then a decoder that reads it."""
    model = BlipAnswering(config)
    return {"vision": _encoders(model, flops.text_length)["vision"], **_answered(model, flops)}


def _answered(model: Answering, flops: FlopsConfig) -> Parts:
    fusion = steps_macs(model.fusion_steps, _streams(model, flops.text_length))
    return {"fusion": fusion, "head": _decoder(model.text_decoder, flops.text_length, 0, flops)}


def _blip_caption(config: ModelConfig, flops: FlopsConfig) -> Parts:
    """A decoder that reads the image."""
    model = BlipCaptioner(config)
    vision = patch_macs(config.vision) + steps_macs(model.visual_encoder.steps, {"image": 1 + config.vision.patches})
    return {"vision": vision, "head": _decoder(model.text_decoder, 1 + config.vision.patches, flops.text_length, flops)}


def _decoder(decoder: TextTower, source: int, prompt: int, flops: FlopsConfig) -> float:
    """A decoder with cached keys and values that writes `new_tokens` behind a prompt, with each of its beams."""
    width, words = decoder.config.width, decoder.config.vocab_size
    steps = decoder.bert.steps("decoder", slice(None), ("source",))
    block = steps[0].advances[0].block
    source_width = block.crossattention.self.key.in_features  # type: ignore[attr-defined]
    shared = len(steps) * float(key_value_macs(torch.tensor(source, device="cpu"), width, source_width))
    written, before = 0.0, 0
    for position in range(flops.new_tokens):
        asked = max(1, prompt) if position == 0 else 1
        # The tokens that are asked now attend to each other and to those before, whose maps are there.
        own = steps_macs(steps, {"text": asked, "source": source}) - shared
        written += own + len(steps) * 2 * asked * before * width
        written += linear_macs(decoder.cls.predictions.transform) + width * words
        before += asked
    return shared + flops.beams * written


_Counter = Callable[[ModelConfig, FlopsConfig], Parts]
_COUNTERS: Mapping[str, Mapping[str, _Counter]] = {
    "albef": {"retrieval": _retrieval, "vqa": _albef_vqa},
    "clip": {"retrieval": _retrieval},
    "meter": {"retrieval": _retrieval, "vqa": _meter_vqa, "nlvr2": _meter_nlvr2},
    "blip": {"retrieval": _retrieval, "vqa": _blip_vqa, "nlvr2": _blip_nlvr2, "caption": _blip_caption},
}
