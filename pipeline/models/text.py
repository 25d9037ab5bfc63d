"""Text encoders and decoders: BERT with Hugging Face's parameter names, as steps of a layer schedule.

B batch, L text tokens, N new ones of a text that grows, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.limits import above_zero, at_least
from pipeline.models.blocks import Pair, PostNormBlock, init_transformer
from pipeline.models.feed_forward import Activation
from pipeline.models.linear import Linear
from pipeline.models.past import Past
from pipeline.models.schedule import Advance, Step, TokenStream


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Size of the text encoder and of the fusion layers on top of it.

    Attributes:
        vocab_size: V; 0 stands for the size of the run's tokenizer.
        width: D.
        text_layers: Layers of the text encoder.
        fusion_layers: Layers on top of them that cross-attend to the image (ALBEF, METER).
        heads: Attention heads; divides `width`.
        hidden: Width of the feed-forward part; 0 stands for 4 D.
        max_positions: Rows of the position table; `longest` says how many tokens a text may have.
        type_rows: Rows of the token-type table, of which the first is used; 0 for none (BLIP), 1 (RoBERTa).
        pad_id: Id of padding where positions count real tokens only, from pad_id + 1 (RoBERTa); None where they are
            0, 1, 2, ... (BERT).
        eps: Of the layer norms.
        dropout: Of embeddings, attention weights and outputs, in training.
        activation: Of the feed-forward parts of CLIP's text tower; the others have GELU.
    """

    vocab_size: int = 30522
    width: int = 768
    text_layers: int = 6
    fusion_layers: int = 6
    heads: int = 12
    hidden: int = 0
    max_positions: int = 512
    type_rows: int = 2
    pad_id: int | None = None
    eps: float = 1e-12
    dropout: float = 0.1
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        at_least(self, "text", 0, "vocab_size", "hidden", "fusion_layers", "type_rows")
        at_least(self, "text", 1, "width", "text_layers", "heads", "max_positions")
        above_zero(self, "text", "eps")
        if not 0 <= self.dropout < 1:
            raise UserError(f"text.dropout={self.dropout} must lie in [0, 1); 0.1 is usual")
        if self.width % self.heads:
            raise UserError(f"text.width={self.width} must be a multiple of text.heads={self.heads}")
        if self.pad_id is not None and not 0 <= self.pad_id < self.max_positions - 1:
            raise UserError(f"text.pad_id={self.pad_id} must lie in [0, text.max_positions - 2]; RoBERTa's is 1")

    @property
    def longest(self) -> int:
        """Tokens that a text may have."""
        return self.max_positions - (0 if self.pad_id is None else self.pad_id + 1)

    @property
    def hidden_width(self) -> int:
        """F, the width of the feed-forward part."""
        return self.hidden or 4 * self.width


class Embeddings(nn.Module):
    """Word + position + type 0 where there are types, then a norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.pad_id = config.pad_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.token_type_embeddings = nn.Embedding(config.type_rows, config.width) if config.type_rows else None
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids_BL: Tensor, begin: int = 0) -> Tensor:
        """(B, L) ids -> (B, L, D); the first of them stands at place `begin` of its text."""
        x = self.word_embeddings(ids_BL) + self._positions(ids_BL, begin)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x))

    def _positions(self, ids_BL: Tensor, begin: int) -> Tensor:
        """(L, D) or (B, L, D)."""
        if self.pad_id is None:
            return self.position_embeddings.weight[begin : begin + ids_BL.shape[1]]
        assert begin == 0, "places that depend on the padding before are counted from the text's begin"
        real_BL = (ids_BL != self.pad_id).long()
        return self.position_embeddings(real_BL.cumsum(1) * real_BL + self.pad_id)


class Layers(nn.Module):
    """A list called ``layer``, as Hugging Face's encoder has."""

    def __init__(self, layers: list[PostNormBlock]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class Bert(nn.Module):
    """Embeddings and layers.

    Args:
        config: Sizes.
        blocks: The layers.
    """

    def __init__(self, config: TextConfig, blocks: list[PostNormBlock]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(blocks)

    def embed(self, ids_BL: Tensor, mask_BL: Tensor, causal: bool = False) -> TokenStream:
        """Ids and padding mask -> a stream; `origin` is the position in the text."""
        origin_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return TokenStream(self.embeddings(ids_BL), mask_BL.bool(), origin_L.expand_as(ids_BL), causal=causal)

    def go_on(self, ids_BL: Tensor, past: Past) -> TokenStream:
        """What is new of texts that grow, without padding, as a causal stream that sees all before; `past` takes it in.

        Args:
            ids_BL: The whole texts so far.
            past: Of these rows.
        """
        begin, past.length = past.length, ids_BL.shape[1]
        origin_L = torch.arange(begin, past.length, device=ids_BL.device)
        new_BN = ids_BL[:, begin:]
        return TokenStream(self.embeddings(new_BN, begin), None, origin_L.expand_as(new_BN), causal=True, past=past)

    def steps(self, part: str, layers: slice, sources: tuple[str, ...] = (), tells: bool = False) -> list[Step]:
        """Some of the layers as steps of the stream ``text``; what they attend to guides them, if anything does.

        A pair of images has a stream ``pair`` for it.

        Args:
            part: Name of the part.
            layers: Which.
            sources: What they attend to.
            tells: Whether every token is an output, so that methods may take out the source's alone.
        """
        guide = "text" if not sources else sources[0] if len(sources) == 1 else "pair"
        tells_of = guide if tells else ""
        return [
            Step(part, number, (Advance("text", block, sources, guide, tells_of=tells_of),))
            for number, block in enumerate(self.encoder.layer[layers])
        ]


def text_block(config: TextConfig, source_width: int | None = None, pair: Pair | None = None) -> PostNormBlock:
    """A layer of these sizes; `source_width` gives it cross-attention, `pair` to two images."""
    return PostNormBlock(
        config.width, config.heads, config.hidden_width, source_width, config.eps, config.dropout, pair
    )


class Transform(nn.Module):
    """Dense, GELU (erf), norm; Hugging Face's ``predictions.transform``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.LayerNorm(self.dense.then_gelu(x))


class Predictions(nn.Module):
    """Word scores with the word embeddings as output matrix."""

    def __init__(self, width: int, vocab_size: int, eps: float) -> None:
        super().__init__()
        self.transform = Transform(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, word_embeddings_VD: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(self.transform(x), word_embeddings_VD, self.bias)


class WordHead(nn.Module):
    """Hugging Face's ``cls``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config.width, config.vocab_size, config.eps)


class TextTower(nn.Module):
    """Layers with a word head (Hugging Face's ``BertForMaskedLM`` names).

    Args:
        config: Sizes.
        blocks: The layers.
        tells: Whether it has the head.
    """

    def __init__(self, config: TextConfig, blocks: list[PostNormBlock], tells: bool = True) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, blocks)
        if tells:
            self.cls = WordHead(config)
        init_transformer(self, config.width)

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        scores: Tensor = self.cls.predictions(x, self.bert.embeddings.word_embeddings.weight)
        return scores
