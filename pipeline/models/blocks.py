"""The two transformer blocks, with the parameter names of timm (pre-norm) and Hugging Face's BERT (post-norm).

Both map a token stream to a token stream and work alike on padded (B, N, D) and packed (T, D) tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.attention import Asked, Keys, attention, cls_probabilities
from pipeline.models.schedule import InBlock, TokenStream


class FusedAttention(nn.Module):
    """Self-attention of a pre-norm block; timm's names ``qkv`` and ``proj``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def ask(self, stream: TokenStream) -> Asked:
        """Queries, keys and values of a stream whose `x` is already normalised."""
        q, k, v = self.qkv(stream.x).chunk(3, -1)
        return Asked(q, Keys(k, v, stream.present, None, stream.offsets, stream.size), self.heads)

    def forward(self, asked: Asked, head_mask_BH: Tensor | None) -> Tensor:
        """Attend inside the stream; returns the projected context."""
        context = attention(asked.q, asked.keys, self.heads, head_mask_BH=head_mask_BH, offsets=asked.keys.offsets)
        return self.proj(context)

    def cls_row(self, x_BND: Tensor) -> Tensor:
        """(B, H, N) attention of the first token to all, from normalised tokens; no keys are made."""
        width = x_BND.shape[-1]
        q_BD = F.linear(x_BND[:, 0], self.qkv.weight[:width], self.qkv.bias[:width])
        return cls_probabilities(q_BD, x_BND, self.qkv.weight[width : 2 * width], self.heads)


class Mlp(nn.Module):
    """Two linear maps with GELU (erf) between; timm's names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class PreNormBlock(nn.Module):
    """``x += attn(norm1(x)); x += mlp(norm2(x))`` (timm's ViT block).

    Args:
        width: D.
        heads: H.
        mlp_ratio: Hidden width of the MLP over D.
        eps: Of the layer norms.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, stream: TokenStream, source: TokenStream | None, inside: InBlock) -> TokenStream:
        """Advance the stream; there is no cross-attention, so `source` is None."""
        asked = self.attn.ask(stream.with_x(self.norm1(stream.x)))
        stream = stream.with_x(stream.x + self.attn(asked, inside.self_BH))
        if inside.between is not None:
            stream = inside.between(stream, asked)
        return stream.with_x(stream.x + self.mlp(self.norm2(stream.x)))

    def cls_attention(self, x_BND: Tensor) -> Tensor:
        """(B, n) attention of CLS to the other n = N - 1 tokens, mean over heads, softmax over all N."""
        # In bf16 near-uniform attention is full of ties, and ties go to the lower position: the top left would win.
        with torch.autocast(x_BND.device.type, enabled=False):
            return self.attn.cls_row(self.norm1(x_BND.to(self.norm1.weight.dtype))).mean(1)[:, 1:]


class Projections(nn.Module):
    """Query, key and value maps; Hugging Face's ``attention.self``."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)


class ResidualNorm(nn.Module):
    """``LayerNorm(residual + dropout(dense(x)))``; Hugging Face's ``output``."""

    def __init__(self, width_in: int, width: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both (..., D)."""
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class ResidualAttention(nn.Module):
    """Attention with output map, residual and norm; Hugging Face's ``attention`` and ``crossattention``."""

    def __init__(self, width: int, source_width: int, heads: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self = Projections(width, source_width)
        self.output = ResidualNorm(width, width, eps, dropout)
        self.dropout = dropout

    def keys(self, source: TokenStream) -> Keys:
        """Keys and values of a stream, made once however many rows attend to it."""
        k, v = self.self.key(source.x), self.self.value(source.x)
        return Keys(k, v, source.present, source.rows, source.offsets, source.size)

    def forward(self, stream: TokenStream, keys: Keys, head_mask_BH: Tensor | None) -> TokenStream:
        """Attend from `stream` to `keys`."""
        context = attention(
            self.self.query(stream.x),
            keys,
            self.heads,
            head_mask_BH=head_mask_BH,
            offsets=stream.offsets,
            dropout=self.dropout if self.training else 0.0,
        )
        return stream.with_x(self.output(context, stream.x))


class Intermediate(nn.Module):
    """First map of the feed-forward part with GELU (erf); Hugging Face's ``intermediate``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., F)."""
        return F.gelu(self.dense(x))


class PostNormBlock(nn.Module):
    """BERT's layer: self-attention, cross-attention where it has one, feed-forward; a norm after each sum.

    Args:
        width: D.
        heads: H.
        hidden: Width of the feed-forward part.
        source_width: Width of what it cross-attends to; None for a layer without cross-attention.
        eps: Of the layer norms.
        dropout: Of attention weights and of the three outputs.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        source_width: int | None = None,
        eps: float = 1e-12,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = ResidualAttention(width, width, heads, eps, dropout)
        if source_width is not None:
            self.crossattention = ResidualAttention(width, source_width, heads, eps, dropout)
        self.intermediate = Intermediate(width, hidden)
        self.output = ResidualNorm(hidden, width, eps, dropout)

    def forward(self, stream: TokenStream, source: TokenStream | None, inside: InBlock) -> TokenStream:
        """Advance the stream; a None source skips the cross-attention."""
        assert inside.between is None, "only pre-norm blocks let a method act between attention and MLP"
        stream = self.attention(stream, self.attention.keys(stream), inside.self_BH)
        if source is not None:
            stream = self.crossattention(stream, self.crossattention.keys(source), inside.cross_BH)
        return stream.with_x(self.output(self.intermediate(stream.x), stream.x))


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
    nn.Conv2d: _init_linear,
    nn.Embedding: _init_linear,
}
