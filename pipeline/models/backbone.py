"""What every backbone is to tasks and methods: two encoders, and for most of them fusion.

B batch, L text tokens, D width, E width of the shared embedding, F width of the fused features.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.blocks import init_transformer
from pipeline.models.config import ModelConfig
from pipeline.models.linear import Linear
from pipeline.models.schedule import NO_STREAMS, Intervention, Step, TokenStream, execute, side_by_side
from pipeline.models.vision import VisionTower
from pipeline.precision import at_least_float32

PairWay = Literal["passes", "both"]
"""How a pair of pictures is read: ``passes`` fuses the text with each and puts both features side by side (METER);
``both`` has every cross-attention look at both (BLIP, and ALBEF likewise)."""


@dataclass(frozen=True)
class Fused:
    """What fusion gives.

    Attributes:
        text: The text stream after the last layer, for the word head.
        features_BF: What task heads look at.
    """

    text: TokenStream
    features_BF: Tensor


class Backbone(nn.Module, ABC):
    """Base of the four backbones; each names its steps and says what its streams begin with.

    Args:
        config: Sizes; `text.vocab_size` is set.
    """

    averaged: tuple[str, ...] = ()
    """Parts that have a copy in the momentum tower; empty for a backbone without one."""

    fuses_from_words = False
    """Whether fusion begins with the text's words once more, and not with the encoded text."""

    encodes_together = False
    """Whether trimmers have text and image encoded side by side, where nothing in the image waits for the text."""

    ranks_with_similarity = False
    """Whether candidates that matching re-ranks have the similarity of features added to their scores (BLIP)."""

    pair: PairWay | None = None
    """How it reads two pictures, once `models.pairs.begin_pairs` made it read such; None for one picture."""

    # Of the backbones that have them: contrast (all but METER), matching and words (all but CLIP).
    vision_proj: nn.Linear
    text_proj: nn.Linear
    temp: nn.Parameter
    itm_head: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTower(config.vision)

    @property
    @abstractmethod
    def text_steps(self) -> list[Step]:
        """The layers in which the text is alone."""

    @property
    @abstractmethod
    def fusion_steps(self) -> list[Step]:
        """The layers in which text and image meet; empty where they do not."""

    @property
    def schedule(self) -> list[Step]:
        """Text first (its CLS guides vision), then vision, then fusion: the one way of every forward."""
        return [*self.text_steps, *self.visual_encoder.steps, *self.fusion_steps]

    def schedule_for(self, together: bool, asked: bool = True) -> list[Step]:
        """What a task's forward goes through.

        Args:
            together: Whether both encoders advance side by side.
            asked: Whether somebody looks at the text alone; fusion may do without it (`fuses_from_words`).
        """
        if not together:
            alone = asked or not self.fuses_from_words
            return [step for step in self.schedule if alone or step.part != "text"]
        return [*side_by_side(self.text_steps, self.visual_encoder.steps), *self.fusion_steps]

    @abstractmethod
    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """What the text layers begin with."""

    def encode_text(self, ids_BL: Tensor, mask_BL: Tensor, interventions: Sequence[Intervention] = ()) -> TokenStream:
        """Text-only layers.

        Args:
            ids_BL: (B, L) token ids.
            mask_BL: (B, L) True at real tokens.
            interventions: Methods that act on these layers.

        Returns:
            The text stream.
        """
        return execute(self.text_steps, {"text": self.embed_text(ids_BL, mask_BL)}, interventions)["text"]

    def encode_image(
        self, pixels: Tensor, interventions: Sequence[Intervention] = (), text: TokenStream | None = None
    ) -> TokenStream:
        """Vision tower.

        Args:
            pixels: (B, 3, height, width), normalised.
            interventions: Methods that act on these layers, such as ELIP's pruning by a sentence.
            text: The encoded text, for methods that look at it.

        Returns:
            The image stream after the final norm.
        """
        encoded: TokenStream = self.visual_encoder(
            pixels, interventions, NO_STREAMS if text is None else {"text": text}
        )
        return encoded

    def encode_together(
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: Sequence[Intervention]
    ) -> tuple[TokenStream, TokenStream]:
        """The encoded text and image, as `encode_text` and `encode_image` give them, layer by layer side by side."""
        steps = side_by_side(self.text_steps, self.visual_encoder.steps)
        begun = {"text": self.embed_text(ids_BL, mask_BL), "image": self.visual_encoder.embed(pixels)}
        streams = execute(steps, begun, interventions)
        return streams["text"], self.visual_encoder.finish(streams["image"])

    def sentence(self, text: TokenStream) -> Tensor:
        """(B, D of vision) the vector that guides pruning (METHODS.md section 1), from the encoded text."""
        return text.cls

    @property
    def pictures(self) -> tuple[str, ...]:
        """Streams that fusion attends to where images do not change with the text (ALBEF, BLIP)."""
        return ("image", "other") if self.pair == "both" else ("image",)

    def begin_fusion(self, text: TokenStream | None, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """The text stream that fusion begins with, from the encoded text or (`fuses_from_words`) from its ids."""
        assert text is not None, "fusion goes on from the encoded text"
        return text

    def fuse(self, text: TokenStream, image: TokenStream, interventions: Sequence[Intervention] = ()) -> Fused:
        """Fusion layers.

        Args:
            text: From `begin_fusion`.
            image: From `encode_image`; its `rows` let several texts share an image.
            interventions: Methods that act on these layers.
        """
        streams = execute(self.fusion_steps, {"text": text, "image": image}, interventions)
        return Fused(streams["text"], streams["text"].cls)

    def word_scores(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V): the score of each word.

        Raises:
            TypeError: The backbone tells no words.
        """
        raise TypeError(f"{self.config.backbone} has no head that tells words")

    @property
    def has_contrast(self) -> bool:
        """Whether images and texts meet in one embedding."""
        return "temp" in self._parameters

    def add_contrast(self, config: ModelConfig, bias: bool = True) -> None:
        """Make the projections and the temperature."""
        self.vision_proj = Linear(config.vision.width, config.embed, bias)
        self.text_proj = Linear(config.text.width, config.embed, bias)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        init_transformer(self.vision_proj, config.vision.width)
        init_transformer(self.text_proj, config.text.width)

    def image_feature(self, image: TokenStream) -> Tensor:
        """(B, E) of unit length, from the image's CLS."""
        return F.normalize(at_least_float32(self.vision_proj(image.cls)), dim=-1)

    def text_feature(self, text: TokenStream) -> Tensor:
        """(B, E) of unit length, from the text's pooled token."""
        return F.normalize(at_least_float32(self.text_proj(self.pooled(text))), dim=-1)

    def match_score(self, features_BF: Tensor) -> Tensor:
        """(B,) what pairs are ranked by, of fused features: matching's score of a match, as all three projects do."""
        with torch.autocast(features_BF.device.type, enabled=False):  # 8 bits of a product would tie what differs
            logits_B2: Tensor = self.itm_head(at_least_float32(features_BF))
        return logits_B2[:, 1]

    def pooled(self, text: TokenStream) -> Tensor:
        """(B, D) the token that speaks for the text."""
        return text.cls


def matching_head(width: int) -> nn.Linear:
    """The head of image-text matching: class 1 is a match."""
    head = Linear(width, 2)
    init_transformer(head, width)
    return head
