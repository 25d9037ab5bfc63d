"""The text encoder with fusion layers: BERT with Hugging Face's parameter names, as steps of a layer schedule.

B batch, L text tokens, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.limits import above_zero, at_least
from pipeline.models.blocks import PostNormBlock, init_transformer
from pipeline.models.schedule import Advance, Step, TokenStream


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Size of the text encoder and of the fusion layers on top of it.

    Attributes:
        vocab_size: V; 0 stands for the size of the run's tokenizer.
        width: D.
        text_layers: Layers that see text only.
        fusion_layers: Layers that cross-attend to the image.
        heads: Attention heads; divides `width`.
        hidden: Width of the feed-forward part; 0 stands for 4 D.
        max_positions: Longest text in tokens.
        eps: Of the layer norms.
        dropout: Of embeddings, attention weights and outputs, in training.
    """

    vocab_size: int = 30522
    width: int = 768
    text_layers: int = 6
    fusion_layers: int = 6
    heads: int = 12
    hidden: int = 0
    max_positions: int = 512
    eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, "text", 0, "vocab_size", "hidden")
        at_least(self, "text", 1, "width", "text_layers", "fusion_layers", "heads", "max_positions")
        above_zero(self, "text", "eps")
        if not 0 <= self.dropout < 1:
            raise UserError(f"text.dropout={self.dropout} must lie in [0, 1); 0.1 is usual")
        if self.width % self.heads:
            raise UserError(f"text.width={self.width} must be a multiple of text.heads={self.heads}")


class Embeddings(nn.Module):
    """Word + position + type 0, then a norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D)."""
        x = self.word_embeddings(ids_BL) + self.position_embeddings.weight[: ids_BL.shape[1]]
        return self.dropout(self.LayerNorm(x + self.token_type_embeddings.weight[0]))


class Layers(nn.Module):
    """A list called ``layer``, as Hugging Face's encoder has."""

    def __init__(self, layers: list[PostNormBlock]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class Bert(nn.Module):
    """Embeddings, text-only layers and fusion layers."""

    def __init__(self, config: TextConfig, source_width: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        hidden = config.hidden or 4 * config.width
        sources = [None] * config.text_layers + [source_width] * config.fusion_layers
        self.encoder = Layers(
            [
                PostNormBlock(config.width, config.heads, hidden, source, config.eps, config.dropout)
                for source in sources
            ]
        )


class Transform(nn.Module):
    """Dense, GELU (erf), norm; Hugging Face's ``predictions.transform``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """Word scores with the word embeddings as output matrix."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = Transform(config.width, config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, word_embeddings_VD: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(self.transform(x), word_embeddings_VD, self.bias)


class WordHead(nn.Module):
    """Hugging Face's ``cls``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class TextTower(nn.Module):
    """Text encoder, fusion layers and word head (Hugging Face's ``BertForMaskedLM`` names).

    Args:
        config: Sizes.
        source_width: Width of the image tokens that the fusion layers attend to.
    """

    def __init__(self, config: TextConfig, source_width: int) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, source_width)
        self.cls = WordHead(config)
        init_transformer(self, config.width)

    def embed(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Ids and padding mask -> a stream; `origin` is the position in the text."""
        origin_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return TokenStream(self.bert.embeddings(ids_BL), mask_BL.bool(), origin_L.expand_as(ids_BL))

    @property
    def text_steps(self) -> list[Step]:
        """The text-only layers; no other modality guides them."""
        layers = self.bert.encoder.layer[: self.config.text_layers]
        return [Step("text", i, (Advance("text", block, None, "text"),)) for i, block in enumerate(layers)]

    @property
    def fusion_steps(self) -> list[Step]:
        """The layers that attend to the stream ``image``."""
        layers = self.bert.encoder.layer[self.config.text_layers :]
        return [Step("fusion", i, (Advance("text", block, "image", "image"),)) for i, block in enumerate(layers)]

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        scores: Tensor = self.cls.predictions(x, self.bert.embeddings.word_embeddings.weight)
        return scores
