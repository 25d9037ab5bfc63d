"""ALBEF (Li et al. 2021, arXiv 2107.07651): ViT, text encoder and fusion layers, with the official parameter names."""

from torch import Tensor

from pipeline.models.answering import Answering
from pipeline.models.backbone import Backbone, matching_head
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import Step, TokenStream
from pipeline.models.text import TextTower, text_block


class AlbefEncoders(Backbone):
    """Vision tower, text encoder and the fusion layers on top of it.

    Args:
        config: Sizes; `text.vocab_size` is set.
        tells: Whether the text encoder has a head that tells words.
    """

    def __init__(self, config: ModelConfig, tells: bool) -> None:
        super().__init__(config)
        text = config.text
        blocks = [text_block(text) for _ in range(text.text_layers)]
        blocks += [text_block(text, config.vision.width) for _ in range(text.fusion_layers)]
        self.text_encoder = TextTower(text, blocks, tells)

    @property
    def text_steps(self) -> list[Step]:
        """The layers below fusion."""
        return self.text_encoder.bert.steps("text", slice(self.config.text.text_layers))

    @property
    def fusion_steps(self) -> list[Step]:
        """The layers on top, in which the text attends to the image."""
        return self.text_encoder.bert.steps("fusion", slice(self.config.text.text_layers, None), self.pictures)

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """Words and positions."""
        return self.text_encoder.bert.embed(ids_BL, mask_BL)


class Albef(AlbefEncoders):
    """The encoders with the heads of pre-training.

    Args:
        config: Sizes; `text.vocab_size` is set.
    """

    averaged = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, tells=True)
        self.add_contrast(config)
        self.itm_head = matching_head(config.text.width)

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.text_encoder.word_scores(x)


class AlbefAnswering(Answering, AlbefEncoders):
    """The question reads the image, an answer decoder with as many layers as fusion has reads the question.

    Args:
        config: Sizes; `text.vocab_size` is set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, tells=False)
        self.add_decoder(config, config.text.fusion_layers)
