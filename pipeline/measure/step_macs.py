"""Multiply-accumulates (MACs) of a training step of any stage: what model FLOPs utilisation is reckoned by.

One sample, padding included, matrix products only, as `measure.flops`; a backward counts as two forwards, and what is
computed again to save memory counts once. `training_macs` has ALBEF's step; here are the others.

m image tokens with CLS, L text tokens.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from pipeline.measure.flops import joining_macs, key_value_macs, linear_macs
from pipeline.measure.model_flops import steps_macs
from pipeline.measure.training_macs import PAIRS, Macs, StepSizes, albef_step_macs, tower_macs
from pipeline.models.albef import Albef
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.clip import Clip
from pipeline.models.config import BackboneName
from pipeline.models.meter import Meter
from pipeline.pruning.config import PruningConfig
from pipeline.trimming.cost import Units

if TYPE_CHECKING:
    # It reads pictures and shards, whose libraries benchmarks/gpu_step.py does without.
    from pipeline.tasks.classification import ClassificationModel


def pretraining_macs(model: Backbone, pruning: PruningConfig, sizes: StepSizes) -> Macs:
    """The pre-training step of any backbone."""
    return _COUNTERS[model.config.backbone](model, pruning, sizes)


def classification_macs(model: "ClassificationModel", text_length: int, full: bool) -> float:
    """Forward and backward of fine-tuning on statements, where masked tokens and heads are computed like the others.

    A student's teacher runs forward alone; a method that takes tokens out counts as it does in the end.

    Args:
        model: With trimmers, or without.
        text_length: L.
        full: Whether the untrimmed model is trained beside the trimmed one.
    """
    cost = model.training_cost_model()
    vision = torch.tensor([float(model.backbone.config.vision.patches)])
    units = Units(vision=vision, text=torch.tensor([text_length - 1.0]))
    plain = float(cost.full(units))
    if model.trimmers is None:
        return 3 * plain + (0 if model.whole is None else float(model.full_macs(units)))
    share = model.trimmers.share if model.trimmers.removes_while_training else 1.0
    return 3 * (float(cost.at_share(units, share)) + full * plain)


def _albef(model: Backbone, pruning: PruningConfig, sizes: StepSizes) -> Macs:
    assert isinstance(model, Albef)
    return albef_step_macs(model, pruning, sizes)


def _clip(model: Backbone, pruning: PruningConfig, sizes: StepSizes) -> Macs:
    """Both encoders, each feature against those of the batch, and the sentence's way back into the tower's width."""
    assert isinstance(model, Clip)
    sentence = linear_macs(model.text_proj) + linear_macs(model.vision_proj)
    own = Macs(trained=_text(model, sizes) + _features(model, sizes), forward_only=sentence)
    return tower_macs(model.visual_encoder, pruning) + own


def _meter(model: Backbone, pruning: PruningConfig, sizes: StepSizes) -> Macs:
    """Two texts; each fused with an image, which under ELIP is pruned for it alone."""
    assert isinstance(model, Meter)
    rows, tokens = 2, {"text": sizes.text_length, "image": _image_tokens(model, pruning)}
    image = tower_macs(model.visual_encoder, pruning)
    images = image + image if pruning.chosen is pruning.elip else image
    lengths = (torch.tensor(float(tokens[name])) for name in ("text", "image"))
    fusion = steps_macs(model.fusion_steps, tokens) + float(joining_macs(model, *lengths))
    words = sizes.words * linear_macs(model.mlm_head)
    return images + Macs(rows * (_text(model, sizes) + fusion) + linear_macs(model.itm_head) + words)


def _blip(model: Backbone, pruning: PruningConfig, sizes: StepSizes) -> Macs:
    """Contrast by both models; three grounded texts and a told one that share the image's keys and values."""
    assert isinstance(model, Blip)
    momentum = pruning if pruning.prune_momentum else PruningConfig(method="none")
    alone = _text(model, sizes) + _features(model, sizes)
    tokens = {"text": sizes.text_length, "image": _image_tokens(model, pruning)}
    grounded = steps_macs(model.fusion_steps, tokens)
    width = model.config.vision.width
    keys = float(key_value_macs(torch.tensor(tokens["image"]), model.config.text.width, width))
    shared = PAIRS * len(model.fusion_steps) * keys  # of the three further texts; a decoder's layer counts as another
    head = model.text_decoder.cls.predictions.transform
    word = linear_macs(head) + model.config.text.width * model.config.text.vocab_size
    told = (PAIRS + 1) * grounded - shared + PAIRS * linear_macs(model.itm_head) + sizes.words * word
    return tower_macs(model.visual_encoder, pruning) + Macs(
        trained=alone + told, forward_only=momentum.tower_macs(model.visual_encoder) + alone
    )


def _text(model: Backbone, sizes: StepSizes) -> float:
    return steps_macs(model.text_steps, {"text": sizes.text_length})


def _features(model: Backbone, sizes: StepSizes) -> float:
    """Both features and their logits."""
    maps = linear_macs(model.vision_proj) + linear_macs(model.text_proj)
    return maps + 2 * sizes.keys * model.config.embed


def _image_tokens(model: Backbone, pruning: PruningConfig) -> int:
    """What the tower leaves."""
    vision = model.config.vision
    return pruning.tokens_by_layer(vision.depth, vision.patches)[-1].mlp


_COUNTERS: Mapping[BackboneName, Callable[[Backbone, PruningConfig, StepSizes], Macs]] = {
    "albef": _albef,
    "blip": _blip,
    "meter": _meter,
    "clip": _clip,
}
