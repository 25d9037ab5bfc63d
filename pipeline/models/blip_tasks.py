"""BLIP's fine-tuned models: retrieval, question answering, captioning, pairs of images (NLVR2).

Compositions of the same encoders, layers and steps, with the official parameter names.

B batch, R rows of texts that grow, L text tokens, A answers of all questions, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pipeline.models.answering import Answering
from pipeline.models.backbone import Backbone, matching_head
from pipeline.models.blip import Blip, GroundedBlip, begin_with
from pipeline.models.blocks import PostNormBlock, init_transformer
from pipeline.models.config import ModelConfig
from pipeline.models.linear import Linear
from pipeline.models.packing import unpack
from pipeline.models.past import Past
from pipeline.models.schedule import Intervention, Step, TokenStream
from pipeline.models.text import TextTower, text_block

FIRST_MERGING_LAYER = 6
"""From this layer on a linear map joins what is found in two images; fixed, also for other depths."""


class BlipRetrieval(GroundedBlip):
    """Encoders with the heads of contrast and matching.

    Args:
        config: Sizes; `text.vocab_size` is set and counts [DEC] and [ENC].
    """

    averaged = Blip.averaged

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.add_contrast(config)
        self.itm_head = matching_head(config.text.width)


class BlipAnswering(Answering, GroundedBlip):
    """The question reads the image, an answer decoder with weights of its own reads the question.

    Args:
        config: Sizes; `text.vocab_size` is set and counts [DEC] and [ENC].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.add_decoder(config, config.text.text_layers)

    def begin_answer(self, ids_AL: Tensor) -> Tensor:
        """Behind [DEC], whatever begins them."""
        return begin_with(ids_AL, "decode", self.config.text.vocab_size)


class BlipCaptioner(Backbone):
    """A decoder that tells of an image.

    Args:
        config: Sizes; `text.vocab_size` is set and counts [DEC] and [ENC].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.visual_encoder.guide = "image"  # there is no text yet
        text = config.text
        self.text_decoder = TextTower(text, [text_block(text, config.vision.width) for _ in range(text.text_layers)])

    @property
    def text_steps(self) -> list[Step]:
        """None: words are only decoded."""
        return []

    @property
    def fusion_steps(self) -> list[Step]:
        """The decoder's layers."""
        return self.text_decoder.bert.steps("decoder", slice(None), ("image",), tells=True)

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Words and positions behind [DEC], each token seeing those before it."""
        return self.text_decoder.bert.embed(
            begin_with(ids_BL, "decode", self.config.text.vocab_size), mask_BL, causal=True
        )

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.text_decoder.word_scores(x)

    def next_scores(
        self, ids_RL: Tensor, image: TokenStream, past: Past, interventions: Sequence[Intervention] = ()
    ) -> Tensor:
        """(R, V) scores of the word after each text, of which only what `past` does not have is computed.

        Args:
            ids_RL: [DEC] and the words so far, without padding.
            image: From `encode_image`; with its `memo` its keys and values are made once.
            past: Of these rows; takes in what is new.
            interventions: Methods that act on the decoder's layers.
        """
        text = self.text_decoder.bert.go_on(begin_with(ids_RL, "decode", self.config.text.vocab_size), past)
        return self.word_scores(unpack(self.fuse(text, image, interventions).text).x[:, -1])


class BlipPair(GroundedBlip):
    """Is a sentence true of two images? Each layer attends to both, with projections for each.

    Args:
        config: Sizes; `text.vocab_size` is set and counts [DEC] and [ENC].
    """

    pair = "both"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.text.width
        self.cls_head = nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, 2))
        init_transformer(self.cls_head, width)

    def text_blocks(self, config: ModelConfig) -> list[PostNormBlock]:
        """Layers that average two images first, and merge them further up."""
        return [
            text_block(config.text, config.vision.width, "merge" if layer >= FIRST_MERGING_LAYER else "average")
            for layer in range(config.text.text_layers)
        ]


BlipKind = Literal["blip", "blip_retrieval", "blip_vqa", "blip_caption", "blip_nlvr"]

BLIP_MODELS: dict[BlipKind, type[Backbone]] = {
    "blip": Blip,
    "blip_retrieval": BlipRetrieval,
    "blip_vqa": BlipAnswering,
    "blip_caption": BlipCaptioner,
    "blip_nlvr": BlipPair,
}
"""The five models by what they are called in a config.json."""
