"""Multiply-accumulates (MACs) of a forward, by arithmetic on how many tokens and heads take part.

Matrix products only, a single instance without padding, as torchprofile counts. Counts may be tensors with one
value per instance.

n tokens of the stream, m tokens of the source, D width, h working heads of H, d = D / H, F feed-forward width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.blocks import PostNormBlock, PreNormBlock
from pipeline.models.schedule import Advance, Step, site
from pipeline.models.vision import VisionConfig


@dataclass(frozen=True)
class StepCounts:
    """Tokens (with CLS) and working heads of each instance at one step, (B,) each.

    Attributes:
        tokens: Of the stream that advances.
        source: Of what it cross-attends to; 0 where it does not.
        self_heads: Working heads of its self-attention.
        cross_heads: Of its cross-attention.
    """

    tokens: Tensor
    source: Tensor
    self_heads: Tensor
    cross_heads: Tensor


def self_attention_macs(n: Tensor, width: int, share: Tensor) -> Tensor:
    """Query, key, value and output maps (4 n D²), scores and context (2 n² D), for a share of the heads."""
    return share * (4 * n * width**2 + 2 * n**2 * width)


def key_value_macs(m: Tensor, width: int, source_width: int) -> Tensor:
    """Keys and values of a source; several rows that attend to it can share them."""
    return 2 * m * width * source_width


def cross_attention_macs(n: Tensor, m: Tensor, width: int, source_width: int, share: Tensor) -> Tensor:
    """Query and output maps, keys and values of the source, scores and context."""
    return share * (2 * n * width**2 + key_value_macs(m, width, source_width) + 2 * n * m * width)


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
    macs = self_attention_macs(counts.tokens, width, counts.self_heads / heads)
    macs = macs + 2 * counts.tokens * width * hidden
    if advance.source is None:
        return macs
    assert isinstance(block, PostNormBlock)
    source_width = block.crossattention.self.key.in_features
    share = counts.cross_heads / heads
    return macs + cross_attention_macs(counts.tokens, counts.source, width, source_width, share)


def schedule_macs(steps: Sequence[Step], counts: Mapping[str, StepCounts]) -> Tensor:
    """(B,) MACs of all blocks of the steps; `counts` holds each `site`."""
    return torch.stack([block_macs(a, counts[site(step, a)]) for step in steps for a in step.advances]).sum(0)


def patch_macs(config: VisionConfig) -> int:
    """MACs of the patch projection."""
    return config.patches * config.width * 3 * config.patch**2


def linear_macs(module: nn.Module) -> int:
    """MACs of all linear maps of a module, each applied once."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
