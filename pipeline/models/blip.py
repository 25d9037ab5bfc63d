"""BLIP (Li et al. 2022, arXiv 2201.12086): one text stack, used alone, grounded in the image, or as a decoder.

Official parameter names. The last two words of the vocabulary are [DEC] and [ENC], which begin a text for the decoder
and for the grounded encoder.

B batch, L text tokens, D width, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.models.answering import decode
from pipeline.models.backbone import Backbone, matching_head
from pipeline.models.blocks import PostNormBlock, init_transformer
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import Step, TokenStream
from pipeline.models.text import Bert, TextConfig, TextTower, text_block

EXTRA_WORDS = 2
"""[DEC] and [ENC], behind the tokenizer's own vocabulary."""


def begin_with(ids_BL: Tensor, role: Literal["decode", "ground"], vocab_size: int) -> Tensor:
    """The same texts with their first token saying what they are for."""
    first = vocab_size - EXTRA_WORDS + (role == "ground")
    return torch.cat([torch.full_like(ids_BL[:, :1], first), ids_BL[:, 1:]], 1)


def shared_decoder(config: TextConfig, source_width: int, encoder: Bert) -> TextTower:
    """A decoder that shares all but its self-attention with an encoder."""
    blocks = [text_block(config, source_width) for _ in encoder.encoder.layer]
    decoder = TextTower(config, blocks)
    decoder.bert.embeddings = encoder.embeddings
    for own, shared in zip(blocks, encoder.encoder.layer, strict=True):
        assert isinstance(shared, PostNormBlock)
        own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
    return decoder


class GroundedBlip(Backbone):
    """The two encoders, of which every text layer can attend to the image.

    Args:
        config: Sizes; `text.vocab_size` is set and counts [DEC] and [ENC].
    """

    fuses_from_words = True
    ranks_with_similarity = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        text = config.text
        self.text_encoder = Bert(text, self.text_blocks(config))
        init_transformer(self.text_encoder, text.width)

    def text_blocks(self, config: ModelConfig) -> list[PostNormBlock]:
        """The layers of the text encoder."""
        return [text_block(config.text, config.vision.width) for _ in range(config.text.text_layers)]

    @property
    def text_steps(self) -> list[Step]:
        """All layers, without their cross-attention."""
        return self.text_encoder.steps("text", slice(None))

    @property
    def fusion_steps(self) -> list[Step]:
        """The same layers, now attending to the image."""
        return self.text_encoder.steps("fusion", slice(None), self.pictures)

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Words and positions."""
        return self.text_encoder.embed(ids_BL, mask_BL)

    def begin_fusion(self, text: TokenStream | None, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """The text once more from its words, beginning with [ENC]."""
        return self.embed_text(begin_with(ids_BL, "ground", self.config.text.vocab_size), mask_BL)


class Blip(GroundedBlip):
    """Encoders, decoder and the heads of pre-training.

    Args:
        config: Sizes; `text.vocab_size` is set and counts [DEC] and [ENC].
    """

    averaged = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text_decoder = shared_decoder(config.text, config.vision.width, self.text_encoder)
        self.add_contrast(config)
        self.itm_head = matching_head(config.text.width)

    def decode(self, ids_BL: Tensor, mask_BL: Tensor, image: TokenStream) -> Tensor:
        """(B, L, D) the decoder's states of captions of the images, begun with [DEC]; see `decode`."""
        return decode(self.text_decoder, begin_with(ids_BL, "decode", self.config.text.vocab_size), mask_BL, image).x

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) of the decoder."""
        return self.text_decoder.word_scores(x)
