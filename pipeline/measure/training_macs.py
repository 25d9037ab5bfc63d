"""Multiply-accumulates (MACs) of a training step with fewer vision tokens, by arithmetic on token counts.

They say what speed pruning can give; `measure.bench` says what it gives. One sample, padding included, matrix
products only, as `measure.flops`. A backward counts as two forwards.

N tokens with CLS, m image tokens, L text tokens, D width, E embedding, V vocabulary, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.measure.flops import LayerTokens, StepCounts, key_value_macs, linear_macs, schedule_macs
from pipeline.models.albef import Albef
from pipeline.models.schedule import Step, site
from pipeline.models.vision import VisionTower
from pipeline.pruning.config import PruningConfig
from pipeline.trimming.trimmers import block_size

PAIRS = 3
"""Rows of a sample that matching fuses: the pair, a wrong image, a wrong text."""


@dataclass(frozen=True)
class Macs:
    """MACs of one sample's forward passes.

    Attributes:
        trained: Of passes that a backward follows.
        forward_only: Of passes without gradient: choosing tokens, the momentum tower.
    """

    trained: float = 0.0
    forward_only: float = 0.0

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.trained + other.trained, self.forward_only + other.forward_only)

    @property
    def step(self) -> float:
        """Forward and backward."""
        return 3 * self.trained + self.forward_only


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """What a pre-training step's MACs depend on beside the model.

    Attributes:
        text_length: L, padding included, for padding is computed too.
        keys: Features that each sample is contrasted with: the global batch and the queue.
        words: Masked positions of a sample, on average.
    """

    text_length: int
    keys: int
    words: float


def tower_macs(tower: VisionTower, pruning: PruningConfig) -> Macs:
    """The vision tower as it is trained, and what choosing tokens costs without gradient."""
    return Macs(pruning.tower_macs(tower), pruning.choosing_macs(tower))


def albef_step_macs(model: Albef, pruning: PruningConfig, sizes: StepSizes) -> Macs:
    """ALBEF's pre-training step: online and momentum towers, three losses, keys of images made once."""
    momentum = pruning if pruning.prune_momentum else PruningConfig(method="none")
    tower = model.visual_encoder
    online_m, momentum_m = (_layer_tokens(tower, each)[-1].mlp for each in (pruning, momentum))
    both = _texts_and_features(model, sizes)
    online = both + _fusion(model, PAIRS + 1, online_m, sizes.text_length) + PAIRS * linear_macs(model.itm_head)
    return tower_macs(tower, pruning) + Macs(
        trained=online,
        forward_only=momentum.tower_macs(tower) + both + _fusion(model, 1, momentum_m, sizes.text_length),
    )


def _layer_tokens(tower: VisionTower, pruning: PruningConfig) -> list[LayerTokens]:
    return pruning.tokens_by_layer(tower.config.depth, tower.config.patches)


def _texts_and_features(model: Albef, sizes: StepSizes) -> float:
    """What the online and the momentum model both do: two texts, both features, their logits, word scores."""
    text, width = model.text_encoder, model.config.text.width
    texts = 2 * _layers(model.text_steps, [sizes.text_length] * model.config.text.text_layers)
    features = linear_macs(model.vision_proj) + linear_macs(model.text_proj)
    logits = 2 * sizes.keys * model.config.embed
    word = linear_macs(text.cls.predictions.transform) + width * model.config.text.vocab_size
    return texts + features + logits + sizes.words * word


def _fusion(model: Albef, rows: int, image_tokens: int, text_length: int) -> float:
    """`rows` texts attend to one image, whose keys and values each layer makes once."""
    steps = model.fusion_steps
    per_row = _layers(steps, [text_length] * len(steps), image_tokens)
    once = key_value_macs(_number(image_tokens), model.config.text.width, model.config.vision.width)
    return rows * per_row - (rows - 1) * len(steps) * float(once)


def _layers(steps: Sequence[Step], tokens: Sequence[int], source: int = 0) -> float:
    """Layers with all heads; layer i sees `tokens[i]` tokens."""
    if not steps:
        return 0.0
    counts = {}
    for step, n in zip(steps, tokens, strict=True):
        (advance,) = step.advances
        heads = _number(block_size(advance)[1])
        counts[site(step, advance)] = StepCounts(_number(n), _number(source), heads, heads)
    return float(schedule_macs(steps, counts))


def _number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
