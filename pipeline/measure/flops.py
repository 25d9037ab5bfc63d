"""Multiply-accumulates (MACs) of a forward, by arithmetic on how many tokens and heads take part.

Matrix products only, a single instance without padding, as torchprofile counts. Counts may be tensors with one
value per instance.

n tokens of the stream, m tokens of the source, D width, h working heads of H, d = D / H, F feed-forward width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.models.blocks import PairAttention, PostNormBlock, PreNormBlock, ResidualAttention
from pipeline.models.meter import Meter
from pipeline.models.schedule import Advance, Step, site
from pipeline.models.vision import VisionConfig, VisionTower


class LayerTokens(NamedTuple):
    """Tokens of an instance, CLS included, in one layer: a method may act between attention and MLP."""

    attention: int
    mlp: int


@dataclass(frozen=True)
class StepCounts:
    """Tokens (with CLS) and working heads of each instance at one step, (B,) each.

    Attributes:
        tokens: Of the stream that advances.
        source: Of all that it cross-attends to; 0 where it does not.
        self_heads: Working heads of its self-attention.
        cross_heads: Of its cross-attention.
        mlp: Tokens that its MLP gets; None where as many as attend.
        pairs: Queries times keys of the self-attention; None where each token attends to all.
    """

    tokens: Tensor
    source: Tensor
    self_heads: Tensor
    cross_heads: Tensor
    mlp: Tensor | None = None
    pairs: Tensor | None = None


class Telling(Protocol):
    """What a decoder does for an instance whose text has n tokens beside its first, all (B,)."""

    def tokens(self, n: Tensor) -> Tensor:
        """Tokens that go through its layers."""
        ...

    def pairs(self, n: Tensor) -> Tensor:
        """Queries times keys of the self-attention."""
        ...

    def words(self, n: Tensor) -> Tensor:
        """MACs of the scores of words."""
        ...


@dataclass(frozen=True)
class AnswerRanking:
    """How a decoder ranks answers: the first words of all are scored, then some answers whole.

    What a decoder reads of an answer are its tokens but the last, and behind each of them it scores all words.

    Attributes:
        answers: How many are scored whole.
        length: Tokens that are read of one of them, mean.
        square: Of that number, mean.
        word_macs: Of the scores of all words at one place.
    """

    answers: int
    length: float
    square: float
    word_macs: int

    def tokens(self, n: Tensor) -> Tensor:
        """See `Telling`; the same for every question."""
        return torch.full_like(1.0 * n, 1 + self.answers * self.length)

    def pairs(self, n: Tensor) -> Tensor:
        """See `Telling`."""
        return torch.full_like(1.0 * n, 1 + self.answers * self.square)

    def words(self, n: Tensor) -> Tensor:
        """See `Telling`."""
        return self.word_macs * self.tokens(n)


@dataclass(frozen=True)
class Speech:
    """How a decoder that keeps what it has seen tells a text, with several beams behind one prompt.

    Numbers of tokens here are those beside [DEC], as those of an instance are: of a text and its end n tokens are given
    to the decoder, [DEC] and all but the last. The prompt goes in as one row, then each token in as many as there are
    beams. With one beam this is what a text costs in training.

    Attributes:
        given: Tokens that every text begins with, [DEC] too.
        beams: K.
        word_macs: Of the scores of all words at one place.
    """

    given: int
    beams: int
    word_macs: int

    def tokens(self, n: Tensor) -> Tensor:
        """(B,) that go through the layers, in all beams."""
        return self.given + self.beams * (1.0 * n - self.given).clamp(min=0)

    def pairs(self, n: Tensor) -> Tensor:
        """(B,) queries times keys of the self-attention."""
        n = (1.0 * n).clamp(min=self.given)
        return self.given**2 + self.beams * (n * (n + 1) - self.given * (self.given + 1)) / 2

    def words(self, n: Tensor) -> Tensor:
        """(B,) MACs of all scores of words."""
        return self.word_macs * (1 + self.beams * (1.0 * n - self.given).clamp(min=0))


class Kept(NamedTuple):
    """Tokens with CLS and working heads of each instance where one stream goes through one block, (B,) each.

    Attributes:
        tokens: Tokens that attend; where a decoder tells of a source, those of the source.
        mlp: Tokens that the MLP gets; None where as many as attend.
        self_heads: Working heads of the self-attention; None where all work.
        cross_heads: Of the cross-attention; None where all work, or where there is none.
    """

    tokens: Tensor
    mlp: Tensor | None = None
    self_heads: Tensor | None = None
    cross_heads: Tensor | None = None

    @property
    def left(self) -> Tensor:
        """Tokens that leave the block."""
        return self.tokens if self.mlp is None else self.mlp


def self_attention_macs(n: Tensor, width: int, share: Tensor, pairs: Tensor | None = None) -> Tensor:
    """Query, key, value and output maps (4 n D²), scores and context (2 n² D, or of `pairs`), for a share of heads."""
    return share * (4 * n * width**2 + 2 * (n**2 if pairs is None else pairs) * width)


def key_value_macs(m: Tensor, width: int, source_width: int) -> Tensor:
    """Keys and values of a source; several rows that attend to it can share them."""
    return 2 * m * width * source_width


def cross_attention_macs(counts: StepCounts, attention: nn.Module, share: Tensor) -> Tensor:
    """Query and output maps, keys and values of the sources, scores and context, for a share of heads.

    What joins two images looks at whole outputs, whichever heads work.
    """
    n, m, joins = counts.tokens, counts.source, 0 * counts.tokens
    if isinstance(attention, PairAttention):
        # Two images: queries and outputs are made for each, m counts the tokens of both.
        width, source_width = attention.self0.key.out_features, attention.self0.key.in_features
        maps = 4 * n * width**2
        if attention.output.merge_layer is not None:
            joins = 2 * n * width**2
    else:
        assert isinstance(attention, ResidualAttention)
        width, source_width = attention.self.key.out_features, attention.self.key.in_features
        maps = 2 * n * width**2
    return share * (maps + key_value_macs(m, width, source_width) + 2 * n * m * width) + joins


def block_macs(advance: Advance, counts: StepCounts) -> Tensor:
    """(B,) MACs of one block."""
    block = advance.block
    if isinstance(block, PreNormBlock):
        width, heads = block.attn.proj.in_features, block.attn.heads
        hidden = block.mlp.fc1.out_features
    else:
        assert isinstance(block, PostNormBlock)
        width, heads = block.attention.self.query.in_features, block.attention.heads
        hidden = block.intermediate.dense.out_features
    macs = self_attention_macs(counts.tokens, width, counts.self_heads / heads, counts.pairs)
    macs = macs + 2 * (counts.tokens if counts.mlp is None else counts.mlp) * width * hidden
    if not advance.sources:
        return macs
    assert isinstance(block, PostNormBlock)
    return macs + cross_attention_macs(counts, block.crossattention, counts.cross_heads / heads)


def schedule_macs(steps: Sequence[Step], counts: Mapping[str, StepCounts]) -> Tensor:
    """(B,) MACs of all blocks of the steps; `counts` holds each `site`."""
    return torch.stack([block_macs(a, counts[site(step, a)]) for step in steps for a in step.advances]).sum(0)


def layer_macs(steps: Sequence[Step], layers: Sequence[LayerTokens]) -> int:
    """MACs of steps in which one stream attends to itself, on these tokens."""
    counts = {}
    for step, tokens in zip(steps, layers, strict=True):
        (advance,) = step.advances
        assert isinstance(advance.block, PreNormBlock)
        heads, none = torch.tensor([advance.block.attn.heads]), torch.zeros(1)
        attention, mlp = torch.tensor(tokens, dtype=torch.float64)[:, None]
        counts[site(step, advance)] = StepCounts(attention, none, heads, none, mlp)
    return int(schedule_macs(steps, counts)) if steps else 0


def vision_macs(tower: VisionTower, layers: Sequence[LayerTokens]) -> int:
    """MACs of the tower's forward, patch projection included, with these tokens in its layers."""
    return patch_macs(tower.config) + layer_macs(tower.steps, layers)


def joining_macs(model: nn.Module, text_B: Tensor, image_B: Tensor) -> Tensor:
    """(B,) MACs of METER's way into its co-attention and out of it: projections of all tokens, poolers; 0 elsewhere."""
    if not isinstance(model, Meter):
        return torch.zeros_like(text_B)
    projected = text_B * linear_macs(model.text_transform) + image_B * linear_macs(model.image_transform)
    return projected + linear_macs(model.text_pooler) + linear_macs(model.image_pooler)


def patch_macs(config: VisionConfig) -> int:
    """MACs of the patch projection."""
    return config.patches * config.width * 3 * config.patch**2


def linear_macs(module: nn.Module) -> int:
    """MACs of all linear maps of a module, each applied once."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
