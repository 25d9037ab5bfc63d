"""The two transformer blocks, with the parameter names of timm (pre-norm) and Hugging Face's BERT (post-norm).

Both map a token stream to a token stream and work alike on padded (B, N, D) and packed (T, D) tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.models.attention import Asked, Keys, attention, cls_probabilities
from pipeline.models.feed_forward import Activation, Intermediate, Mlp, feed_forward
from pipeline.models.linear import Linear
from pipeline.models.schedule import InBlock, TokenStream
from pipeline.models.working_heads import HeadMaps, Map, Source, attend_with_working_heads, keys_of_working_heads

Pair = Literal["merge", "average"]
"""How a layer joins what it finds in two images: by a linear map, or by the mean."""


class FusedAttention(nn.Module):
    """Self-attention of a pre-norm block; timm's names ``qkv`` and ``proj``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def ask(self, stream: TokenStream) -> Asked:
        """Queries, keys and values of a stream whose `x` is already normalised."""
        q, k, v = self.qkv(stream.x).chunk(3, -1)
        keys = Keys(k, v, stream.present, None, stream.offsets, stream.causal, stream.size)
        return Asked(q, keys, self.heads)

    def forward(self, asked: Asked, head_mask_BH: Tensor | None) -> Tensor:
        """Attend inside the stream; returns the projected context."""
        context = attention(asked.q, asked.keys, self.heads, head_mask_BH=head_mask_BH, offsets=asked.keys.offsets)
        return self.proj(context)

    def sliced(self, stream: TokenStream, head_mask_BH: Tensor) -> Tensor:
        """The same of a packed stream, of whose trimmed heads nothing is computed."""
        query, key, value = map(Map, self.qkv.weight.chunk(3), self.qkv.bias.chunk(3))
        maps = HeadMaps(query, key, value, Map.of(self.proj), self.heads)
        assert stream.offsets is not None, "only packed instances are sliced"
        source = Source(stream.x, stream.offsets)
        return attend_with_working_heads(maps, stream.x, stream.offsets, source, head_mask_BH, stream.causal)

    def cls_row(self, x_BND: Tensor, present_BN: Tensor | None = None) -> Tensor:
        """(B, H, N) attention of the first token to all that are there, from normalised tokens; no keys are made."""
        width = x_BND.shape[-1]
        q_BD = functional.linear(x_BND[:, 0], self.qkv.weight[:width], self.qkv.bias[:width])
        return cls_probabilities(q_BD, x_BND, self.qkv.weight[width : 2 * width], self.heads, present_BN)


class Block(nn.Module, ABC):
    """Base of the two blocks.

    With `recompute` a block keeps only its input for the backward and makes the rest once more there (activation
    checkpointing): a third more arithmetic for a fraction of the memory.
    """

    recompute = False

    def forward(self, stream: TokenStream, sources: Sequence[TokenStream], inside: InBlock) -> TokenStream:
        """Advance the stream.

        Args:
            stream: The tokens that go through.
            sources: What they cross-attend to.
            inside: What methods want of this block.
        """
        if self.recompute and torch.is_grad_enabled():
            # What is made inside is made again in the backward; a memo would carry it out.
            forgetful = [replace(source, memo=None) for source in sources]
            done: TokenStream = checkpoint(self.advance, stream, forgetful, inside, use_reentrant=False)
            return done
        return self.advance(stream, sources, inside)

    @abstractmethod
    def advance(self, stream: TokenStream, sources: Sequence[TokenStream], inside: InBlock) -> TokenStream:
        """The block's arithmetic."""


def recompute_activations(module: nn.Module) -> None:
    """Switch all blocks of a module to `Block.recompute`."""
    for part in module.modules():
        if isinstance(part, Block):
            part.recompute = True


class PreNormBlock(Block):
    """``x += attn(norm1(x)); x += mlp(norm2(x))`` (timm's ViT block).

    Args:
        width: D.
        heads: H.
        mlp_ratio: Hidden width of the MLP over D.
        eps: Of the layer norms.
        activation: Of the MLP.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), activation)

    def advance(self, stream: TokenStream, sources: Sequence[TokenStream], inside: InBlock) -> TokenStream:
        """Self-attention and MLP; there is no cross-attention, so `sources` is empty."""
        normed = stream.with_x(self.norm1(stream.x))
        if inside.between is None and normed.offsets is not None and inside.self_BH is not None:
            stream = stream.with_x(stream.x + self.attn.sliced(normed, inside.self_BH))
        else:
            asked = self.attn.ask(normed)
            stream = stream.with_x(stream.x + self.attn(asked, inside.self_BH))
            if inside.between is not None:
                stream = inside.between(stream, asked)
        return stream.with_x(stream.x + self.mlp(self.norm2(stream.x)))

    def cls_attention(self, x_BND: Tensor, present_BN: Tensor | None = None) -> Tensor:
        """(B, n) attention of CLS to the other n = N - 1 tokens, mean over heads, softmax over all that are there."""
        # In bf16 near-uniform attention is full of ties, and ties go to the lower position: the top left would win.
        with torch.autocast(x_BND.device.type, enabled=False):
            return self.attn.cls_row(self.norm1(x_BND.to(self.norm1.weight.dtype)), present_BN).mean(1)[:, 1:]


class Projections(nn.Module):
    """Query, key and value maps; Hugging Face's ``attention.self``."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.query = Linear(width, width)
        self.key = Linear(source_width, width)
        self.value = Linear(source_width, width)


class ResidualNorm(nn.Module):
    """``LayerNorm(residual + dropout(dense(x)))``; Hugging Face's ``output``."""

    def __init__(self, width_in: int, width: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.dense = Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both (..., D)."""
        return self.after(self.dense(x), residual)

    def after(self, mapped: Tensor, residual: Tensor) -> Tensor:
        """What follows the linear map."""
        return self.LayerNorm(residual + self.dropout(mapped))


class ResidualAttention(nn.Module):
    """Attention with output map, residual and norm; Hugging Face's ``attention`` and ``crossattention``."""

    def __init__(self, width: int, source_width: int, heads: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self = Projections(width, source_width)
        self.output = ResidualNorm(width, width, eps, dropout)
        self.dropout = dropout

    def forward(self, stream: TokenStream, sources: Sequence[TokenStream], head_mask_BH: Tensor | None) -> TokenStream:
        """Attend from `stream` to the one source there is, which may be itself."""
        (source,) = sources
        dropout = self.dropout if self.training else 0.0
        found = attended(self.self, self.output.dense, stream, source, self.heads, head_mask_BH, dropout)
        return stream.with_x(self.output.after(found, stream.x))


class PairOutput(nn.Module):
    """What is made of the contexts of two images; the official BLIP's ``crossattention.output``."""

    def __init__(self, width: int, merged: bool, eps: float, dropout: float) -> None:
        super().__init__()
        self.dense0 = Linear(width, width)
        self.dense1 = Linear(width, width)
        self.merge_layer = Linear(2 * width, width) if merged else None
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        """Joins what `dense0` and `dense1` have made of the contexts; all (..., D)."""
        both = (first + second) / 2 if self.merge_layer is None else self.merge_layer(torch.cat([first, second], -1))
        return self.LayerNorm(residual + self.dropout(both))


class PairAttention(nn.Module):
    """Cross-attention to a pair of images, each with projections of its own (BLIP's model for NLVR2).

    Args:
        width: D.
        source_width: Width of the image tokens.
        heads: H.
        merged: Whether a linear map joins the two results; otherwise they are averaged.
        eps: Of the norm.
        dropout: Of attention weights and of the output.
    """

    def __init__(self, width: int, source_width: int, heads: int, merged: bool, eps: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.self0 = Projections(width, source_width)
        self.self1 = Projections(width, source_width)
        self.output = PairOutput(width, merged, eps, dropout)

    def forward(self, stream: TokenStream, sources: Sequence[TokenStream], head_mask_BH: Tensor | None) -> TokenStream:
        """Attend from `stream` to both images."""
        dropout = self.dropout if self.training else 0.0
        maps = (self.self0, self.output.dense0), (self.self1, self.output.dense1)
        first, second = (
            attended(projections, dense, stream, source, self.heads, head_mask_BH, dropout)
            for (projections, dense), source in zip(maps, sources, strict=True)
        )
        return stream.with_x(self.output(first, second, stream.x))


def keys_of(
    projections: Projections, source: TokenStream, make: Callable[[], tuple[Tensor, Tensor]] | None = None
) -> Keys:
    """Keys and values of a stream, made once however many rows attend to it, and however many passes with a memo."""
    made = None if source.memo is None else source.memo.get(id(projections))
    k, v = made or (make() if make else (projections.key(source.x), projections.value(source.x)))
    if source.memo is not None:
        source.memo[id(projections)] = k, v
    offsets = source.offsets
    if source.past is not None:
        k, v, offsets = source.past.grown_as(id(projections), k, v, offsets)
    return Keys(k, v, source.present, source.rows, offsets, source.causal, source.size, source.queries)


def attended(
    projections: Projections,
    dense: nn.Linear,
    stream: TokenStream,
    source: TokenStream,
    heads: int,
    head_mask_BH: Tensor | None,
    dropout: float,
) -> Tensor:
    """What the tokens of `stream` find in `source`, through the output map, in the shape of ``stream.x``."""
    if stream.offsets is not None and head_mask_BH is not None:
        query, key, value = map(Map.of, (projections.query, projections.key, projections.value))
        maps = HeadMaps(query, key, value, Map.of(dense), heads)
        offsets, mask_BH = stream.offsets[:: source.queries], head_mask_BH[:: source.queries]
        packed = _packed_source(projections, maps, source, mask_BH)
        return attend_with_working_heads(maps, stream.x, offsets, packed, mask_BH, source.causal)
    context: Tensor = attention(
        projections.query(stream.x),
        keys_of(projections, source),
        heads,
        head_mask_BH=head_mask_BH,
        offsets=stream.offsets,
        dropout=dropout,
    )
    found: Tensor = dense(context)
    return found


def _packed_source(projections: Projections, maps: HeadMaps, source: TokenStream, mask_BH: Tensor) -> Source | Keys:
    """Keys that several rows or passes share are made for the heads that work in any of the rows.

    Passes with one memo have the same heads: a decoder's are decided once (`PackedTrimming`).
    """
    x_SD, offsets = source.x, source.offsets
    assert offsets is not None, "packed queries need a packed source"
    if source.rows is None and source.memo is None and source.past is None:
        return Source(x_SD, offsets)
    if source.rows is not None:
        mask_BH = mask_BH.new_zeros(len(offsets) - 1, mask_BH.shape[1]).index_add_(0, source.rows, mask_BH)
    return keys_of(projections, source, lambda: keys_of_working_heads(maps, x_SD, offsets, mask_BH))


class PostNormBlock(Block):
    """BERT's layer: self-attention, cross-attention where it has one, feed-forward; a norm after each sum.

    Args:
        width: D.
        heads: H.
        hidden: Width of the feed-forward part.
        source_width: Width of what it cross-attends to; None for a layer without cross-attention.
        eps: Of the layer norms.
        dropout: Of attention weights and of the three outputs.
        pair: How it joins two images, for a layer that cross-attends to a pair; None for one source.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        source_width: int | None = None,
        eps: float = 1e-12,
        dropout: float = 0.0,
        pair: Pair | None = None,
    ) -> None:
        super().__init__()
        self.attention = ResidualAttention(width, width, heads, eps, dropout)
        if source_width is not None:
            self.crossattention = (
                ResidualAttention(width, source_width, heads, eps, dropout)
                if pair is None
                else PairAttention(width, source_width, heads, pair == "merge", eps, dropout)
            )
        self.intermediate = Intermediate(width, hidden)
        self.output = ResidualNorm(hidden, width, eps, dropout)

    def advance(self, stream: TokenStream, sources: Sequence[TokenStream], inside: InBlock) -> TokenStream:
        """Self-attention, cross-attention where there are sources, feed-forward."""
        assert inside.between is None, "only pre-norm blocks let a method act between attention and MLP"
        stream = self.attention(stream, [stream], inside.self_BH)
        if sources:
            stream = self.crossattention(stream, sources, inside.cross_BH)
        mapped = feed_forward(stream.x, self.intermediate.dense, self.output.dense)
        return stream.with_x(self.output.after(mapped, stream.x))


def init_transformer(module: nn.Module, width: int) -> float:
    """BERT's and ViT's initialisation: truncated normal weights, zero biases, unit norms.

    Their deviation of 0.02 belongs to a width of 768. Kept at a width of 96 it would let each layer pass on an eighth
    of the signal, and a small tower would hardly begin to learn; so it grows with the root of 768 / width.

    Returns:
        The deviation of the weights.
    """
    std = 0.02 * (768 / width) ** 0.5
    for part in module.modules():
        _INIT.get(type(part), _leave)(part, std)
    return std


def _init_linear(part: nn.Module, std: float) -> None:
    assert isinstance(part, nn.Linear | nn.Conv2d | nn.Embedding)
    nn.init.trunc_normal_(part.weight, std=std)
    bias = getattr(part, "bias", None)
    if isinstance(bias, torch.Tensor):
        nn.init.zeros_(bias)


def _leave(part: nn.Module, std: float) -> None:
    """Norms begin as torch makes them; containers own nothing."""


_INIT: dict[type[nn.Module], Callable[[nn.Module, float], None]] = {
    nn.Linear: _init_linear,
    Linear: _init_linear,
    nn.Conv2d: _init_linear,
    nn.Embedding: _init_linear,
}
