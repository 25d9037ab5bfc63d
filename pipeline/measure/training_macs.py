"""Multiply-accumulates (MACs) of a training step with ELIP, by arithmetic on token counts.

They say what speed pruning can give; `measure.bench` says what it gives. One sample, padding included, matrix
products only, as `measure.flops`. A backward counts as two forwards.

N tokens with CLS, m image tokens, L text tokens, D width, E embedding, V vocabulary, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.measure.flops import StepCounts, key_value_macs, linear_macs, patch_macs, schedule_macs
from pipeline.models.albef import Albef
from pipeline.models.schedule import Step, site
from pipeline.models.vision import VisionTower
from pipeline.pruning.elip import ElipConfig
from pipeline.trimming.trimmers import block_size

PAIRS = 3
"""Rows of a sample that matching fuses: the pair, a wrong image, a wrong text."""


@dataclass(frozen=True)
class Macs:
    """MACs of one sample's forward passes.

    Attributes:
        trained: Of passes that a backward follows.
        forward_only: Of passes without gradient: ELIP's guidance, the momentum tower.
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


def token_counts(elip: ElipConfig, depth: int, patches: int) -> list[int]:
    """Tokens with CLS that each layer of the vision tower sees."""
    counts = [1 + patches] * depth
    if elip.guidance == "none":
        return counts
    for begin, keep in zip(elip.begins, elip.keeps(patches), strict=True):
        counts[begin:] = [1 + keep + elip.merge] * (depth - begin)
    return counts


def vision_macs(tower: VisionTower, elip: ElipConfig) -> Macs:
    """The vision tower as it is trained, and the look ahead that decides what it keeps."""
    return Macs(_tower_pass(tower, elip), _guidance(tower, elip))


def albef_step_macs(model: Albef, elip: ElipConfig, sizes: StepSizes) -> Macs:
    """ALBEF's pre-training step: online and momentum towers, three losses, keys of images made once."""
    unpruned = replace(elip, guidance="none")
    momentum = elip if elip.prune_momentum else unpruned
    tower = model.visual_encoder
    online_m, momentum_m = (token_counts(e, len(tower.blocks), tower.config.patches)[-1] for e in (elip, momentum))
    both = _texts_and_features(model, sizes)
    online = both + _fusion(model, PAIRS + 1, online_m, sizes.text_length) + PAIRS * linear_macs(model.itm_head)
    return vision_macs(tower, elip) + Macs(
        trained=online,
        forward_only=_tower_pass(tower, momentum) + both + _fusion(model, 1, momentum_m, sizes.text_length),
    )


def _tower_pass(tower: VisionTower, elip: ElipConfig) -> float:
    """Patches, layers, and the product that merges the tokens that go."""
    counts = token_counts(elip, len(tower.blocks), tower.config.patches)
    macs = patch_macs(tower.config) + _layers(tower.steps, counts)
    if elip.guidance == "none" or not elip.merge:
        return macs
    return macs + sum((counts[begin - 1] - 1) * tower.config.width for begin in elip.begins)


def _guidance(tower: VisionTower, elip: ElipConfig) -> float:
    """Before each stage: for ``stage`` its layers but the last on all tokens; then one query with folded keys."""
    if elip.guidance == "none":
        return 0.0
    width, heads, steps = tower.config.width, tower.config.heads, tower.steps
    counts = token_counts(elip, len(steps), tower.config.patches)
    macs = 0.0
    for begin, layers in zip(elip.begins, elip.depths[1:], strict=True):
        entering = counts[begin - 1]
        ahead = layers - 1 if elip.guidance == "stage" else 0
        macs += _layers(steps[begin : begin + ahead], [entering] * ahead)
        macs += 2 * width**2 + entering * width * heads
    return macs


def _texts_and_features(model: Albef, sizes: StepSizes) -> float:
    """What the online and the momentum model both do: two texts, both features, their logits, word scores."""
    text, width = model.text_encoder, model.config.text.width
    texts = 2 * _layers(text.text_steps, [sizes.text_length] * model.config.text.text_layers)
    features = linear_macs(model.vision_proj) + linear_macs(model.text_proj)
    logits = 2 * sizes.keys * model.config.embed
    word = linear_macs(text.cls.predictions.transform) + width * model.config.text.vocab_size
    return texts + features + logits + sizes.words * word


def _fusion(model: Albef, rows: int, image_tokens: int, text_length: int) -> float:
    """`rows` texts attend to one image, whose keys and values each layer makes once."""
    steps = model.text_encoder.fusion_steps
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
