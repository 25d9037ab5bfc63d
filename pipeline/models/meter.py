"""METER (Dou et al. 2022, arXiv 2111.02387): two encoders, then two streams that attend to each other.

B batch, L text tokens, N vision tokens, D width of the fusion layers, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.backbone import Backbone, Fused, matching_head
from pipeline.models.blocks import PostNormBlock, init_transformer
from pipeline.models.config import ModelConfig
from pipeline.models.linear import Linear
from pipeline.models.packing import of_rows, spread
from pipeline.models.schedule import Advance, Intervention, Step, Streams, TokenStream, execute
from pipeline.models.text import Bert, Predictions, text_block

IMAGE_TYPES = 2
"""Token types of the image stream: its own, and that of a pair's second image."""


class Pooler(nn.Module):
    """``tanh(dense(first token))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, width)

    def forward(self, stream: TokenStream) -> Tensor:
        """(B, D)."""
        return torch.tanh(self.dense(stream.cls))


class UntiedWords(Predictions):
    """Word scores with an output matrix of their own."""

    def __init__(self, width: int, vocab_size: int, eps: float) -> None:
        super().__init__(width, vocab_size, eps)
        self.decoder = Linear(width, vocab_size, bias=False)


class Meter(Backbone):
    """The two encoders, the co-attending layers and the heads of pre-training.

    Args:
        config: Sizes; `text.vocab_size` is set.
    """

    encodes_together = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        text, fusion = config.text, config.fusion
        self.text_encoder = Bert(text, [text_block(text) for _ in range(text.text_layers)])
        self.text_transform = Linear(text.width, fusion.width)
        self.image_transform = Linear(config.vision.width, fusion.width)
        self.token_type_embeddings = nn.Embedding(1 + IMAGE_TYPES, fusion.width)
        self.text_layers = nn.ModuleList(_fusion_block(config) for _ in range(text.fusion_layers))
        self.image_layers = nn.ModuleList(_fusion_block(config) for _ in range(text.fusion_layers))
        self.text_pooler, self.image_pooler = Pooler(fusion.width), Pooler(fusion.width)
        self.mlm_head = UntiedWords(fusion.width, text.vocab_size, fusion.eps)
        init_transformer(self.text_encoder, text.width)
        fused = [self.text_transform, self.image_transform, self.token_type_embeddings, self.text_layers]
        for part in [*fused, self.image_layers, self.text_pooler, self.image_pooler, self.mlm_head]:
            init_transformer(part, fusion.width)
        self.itm_head = matching_head(2 * fusion.width)

    @property
    def text_steps(self) -> list[Step]:
        """The text encoder."""
        return self.text_encoder.steps("text", slice(None))

    @property
    def fusion_steps(self) -> list[Step]:
        """Both streams at once, each attending to the other as it was before the layer."""
        pairs = zip(self.text_layers, self.image_layers, strict=True)
        return [
            Step(
                "fusion",
                layer,
                (Advance("text", text, ("image",), "image"), Advance("image", image, ("text",), "text")),
            )
            for layer, (text, image) in enumerate(pairs)
        ]

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Words and positions."""
        return self.text_encoder.embed(ids_BL, mask_BL)

    def fuse(
        self,
        text: TokenStream,
        image: TokenStream,
        interventions: Sequence[Intervention] = (),
        image_type: int | Tensor = 1,
    ) -> Fused:
        """Co-attention.

        Args:
            text: From `begin_fusion`.
            image: From `encode_image`. The image stream changes with the text, so `rows` are gathered here.
            interventions: Methods that act on these layers.
            image_type: Row of the token types: 1, or 2 for a pair's second image; (B,) where rows differ.

        Returns:
            Features: the pooled text and the pooled image side by side.
        """
        begun = self.begin_streams(text, image, image_type)
        done = execute(self.fusion_steps, begun, interventions)
        pooled = [self.text_pooler(done["text"]), self.image_pooler(done["image"])]
        return Fused(done["text"], torch.cat(pooled, -1))

    def begin_streams(self, text: TokenStream, image: TokenStream, image_type: int | Tensor = 1) -> Streams:
        """Both streams as the first layer of co-attention sees them; arguments as in `fuse`."""
        image = of_rows(image)
        types = self.token_type_embeddings.weight
        own = types[image_type]
        own = spread(own, image) if own.ndim > 1 else own
        return {
            "text": text.with_x(self.text_transform(text.x) + types[0]),
            "image": image.with_x(self.image_transform(image.x) + own),
        }

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        scores: Tensor = self.mlm_head(x, self.mlm_head.decoder.weight)
        return scores


def _fusion_block(config: ModelConfig) -> PostNormBlock:
    fusion = config.fusion
    hidden = fusion.hidden or 4 * fusion.width
    return PostNormBlock(fusion.width, fusion.heads, hidden, fusion.width, fusion.eps, config.text.dropout)
