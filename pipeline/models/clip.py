"""CLIP (Radford et al. 2021, arXiv 2103.00020): two pre-norm towers that meet in one embedding.

B batch, L text tokens, D width, E width of the shared embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.backbone import Backbone
from pipeline.models.blocks import PreNormBlock, init_transformer
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import Advance, Step, TokenStream
from pipeline.models.text import TextConfig


class ClipText(nn.Module):
    """CLIP's text tower: each token sees those before it, and the last one speaks for all.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.max_positions, config.width))
        ratio = config.hidden_width / config.width
        self.blocks = nn.ModuleList(
            PreNormBlock(config.width, config.heads, ratio, config.eps, config.activation)
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        std = init_transformer(self, config.width)
        nn.init.trunc_normal_(self.positional_embedding, std=std)

    def embed(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Ids and padding mask -> a causal stream; `origin` is the position in the text."""
        length = ids_BL.shape[1]
        origin_L = torch.arange(length, device=ids_BL.device)
        x_BLD = self.token_embedding(ids_BL) + self.positional_embedding[:length]
        return TokenStream(x_BLD, mask_BL.bool(), origin_L.expand_as(ids_BL), causal=True)

    @property
    def steps(self) -> list[Step]:
        """One step a block; nothing else guides them."""
        return [Step("text", layer, (Advance("text", block, (), "text"),)) for layer, block in enumerate(self.blocks)]


class Clip(Backbone):
    """Two towers, two projections, a temperature.

    Args:
        config: Sizes; `text.vocab_size` is set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text_encoder = ClipText(config.text)
        self.add_contrast(config, bias=False)

    @property
    def text_steps(self) -> list[Step]:
        """The text tower."""
        return self.text_encoder.steps

    @property
    def fusion_steps(self) -> list[Step]:
        """None: the towers meet in the embedding only."""
        return []

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Words and positions."""
        return self.text_encoder.embed(ids_BL, mask_BL)

    def pooled(self, text: TokenStream) -> Tensor:
        """(B, D) the last real token, which is the end of the text and has seen all of it, normalised."""
        assert text.present is not None
        last_B = text.present.long().sum(1) - 1
        end_BD = text.x.gather(1, last_B[:, None, None].expand(-1, 1, text.x.shape[-1]))[:, 0]
        return self.text_encoder.norm(end_BD)

    def sentence(self, text: TokenStream) -> Tensor:
        """(B, D of vision): the text's feature taken back by the vision projection's transpose."""
        return self.to_vision_width(self.text_feature(text))

    def to_vision_width(self, feature_BE: Tensor) -> Tensor:
        """(B, E) -> (B, D of vision) by the vision projection's transpose, without gradient."""
        return F.linear(feature_BE.detach(), self.vision_proj.weight.detach().T.to(feature_BE.dtype))
