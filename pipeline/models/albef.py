"""ALBEF (Li et al. 2021, arXiv 2107.07651): ViT, text encoder and fusion layers, with the official parameter names.

B batch, L text tokens, N vision tokens, D width, E width of the shared embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.limits import at_least
from pipeline.models.blocks import init_transformer
from pipeline.models.schedule import Intervention, Step, Streams, TokenStream, execute
from pipeline.models.text import TextConfig, TextTower
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.precision import at_least_float32

TEMPERATURE_LIMITS = (0.001, 0.5)
"""Between which the learned temperature stays."""


@dataclass(frozen=True, kw_only=True)
class AlbefConfig:
    """Sizes of an ALBEF model.

    Attributes:
        vision: The vision tower.
        text: Text encoder and fusion layers.
        embed: E, the width of the contrastive embedding.
        temperature: Where the learned temperature begins.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 256
    temperature: float = 0.07

    def __post_init__(self) -> None:
        low, high = TEMPERATURE_LIMITS
        if not low <= self.temperature <= high:
            raise UserError(f"model.temperature={self.temperature} must lie in [{low}, {high}]; 0.07 is usual")
        at_least(self, "model", 1, "embed")
        if self.vision.width != self.text.width:
            raise UserError(
                f"model.text.width={self.text.width} must equal model.vision.width={self.vision.width}: the text's "
                "CLS guides the vision tower and there is no projection between them; set both to one value"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AlbefConfig":
        """The inverse of `dataclasses.asdict`, for a config.json."""
        parts = {"vision": VisionConfig(**values["vision"]), "text": TextConfig(**values["text"])}
        return cls(**{**values, **parts})


class Albef(nn.Module):
    """The three parts and the heads of pre-training.

    Args:
        config: Sizes; `text.vocab_size` is set.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTower(config.vision)
        self.text_encoder = TextTower(config.text, config.vision.width)
        self.vision_proj = nn.Linear(config.vision.width, config.embed)
        self.text_proj = nn.Linear(config.text.width, config.embed)
        self.itm_head = nn.Linear(config.text.width, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        for head in (self.vision_proj, self.text_proj, self.itm_head):
            init_transformer(head, config.text.width)

    @property
    def schedule(self) -> list[Step]:
        """Text first (its CLS guides vision), then vision, then fusion: the one way of every forward."""
        return [*self.text_encoder.text_steps, *self.visual_encoder.steps, *self.text_encoder.fusion_steps]

    def encode_text(self, ids_BL: Tensor, mask_BL: Tensor, interventions: Sequence[Intervention] = ()) -> TokenStream:
        """Text-only layers.

        Args:
            ids_BL: (B, L) token ids.
            mask_BL: (B, L) True at real tokens.
            interventions: Methods that act on these layers.

        Returns:
            The text stream; its `cls` is the sentence vector that guides pruning.
        """
        streams = {"text": self.text_encoder.embed(ids_BL, mask_BL)}
        return execute(self.text_encoder.text_steps, streams, interventions)["text"]

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
        streams: Streams = {"image": self.visual_encoder.embed(pixels)}
        if text is not None:
            streams = {**streams, "text": text}
        streams = execute(self.visual_encoder.steps, streams, interventions)
        return self.visual_encoder.finish(streams["image"])

    def fuse(self, text: TokenStream, image: TokenStream, interventions: Sequence[Intervention] = ()) -> TokenStream:
        """Fusion layers: the text attends to the image; `image.rows` lets several texts share an image."""
        streams = {"text": text, "image": image}
        return execute(self.text_encoder.fusion_steps, streams, interventions)["text"]

    def image_feature(self, image: TokenStream) -> Tensor:
        """(B, E) of unit length, from the image's CLS."""
        return F.normalize(at_least_float32(self.vision_proj(image.cls)), dim=-1)

    def text_feature(self, text: TokenStream) -> Tensor:
        """(B, E) of unit length, from the text's CLS."""
        return F.normalize(at_least_float32(self.text_proj(text.cls)), dim=-1)
