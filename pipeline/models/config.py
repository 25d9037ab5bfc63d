"""Sizes of a backbone, the same keys for all four."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from data_prep.errors import UserError
from pipeline.limits import at_least
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig

TEMPERATURE_LIMITS = (0.001, 0.5)
"""Between which the learned temperature stays."""

BackboneName = Literal["albef", "blip", "meter", "clip"]


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """METER's two co-attending streams; the other backbones fuse in their text layers.

    Attributes:
        width: D of both streams.
        heads: Attention heads; divides `width`.
        hidden: Width of the feed-forward parts; 0 stands for 4 D.
        eps: Of the layer norms.
    """

    width: int = 768
    heads: int = 12
    hidden: int = 0
    eps: float = 1e-12

    def __post_init__(self) -> None:
        at_least(self, "model.fusion", 1, "width", "heads")
        at_least(self, "model.fusion", 0, "hidden")
        if self.width % self.heads:
            raise UserError(f"model.fusion.width={self.width} must be a multiple of model.fusion.heads={self.heads}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A backbone and its sizes.

    Attributes:
        backbone: ``albef`` (text encoder, fusion layers on top), ``blip`` (every text layer can attend to the image,
            and a decoder), ``meter`` (two encoders, two co-attending streams), ``clip`` (two towers).
        vision: The vision tower.
        text: Text encoder; with ``albef`` and ``meter`` also how many fusion layers there are.
        fusion: Of ``meter`` only.
        embed: E, the width of the contrastive embedding (not used by ``meter``).
        temperature: Where the learned temperature begins.
    """

    backbone: BackboneName = "albef"
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    embed: int = 256
    temperature: float = 0.07

    def __post_init__(self) -> None:
        low, high = TEMPERATURE_LIMITS
        if not low <= self.temperature <= high:
            raise UserError(f"model.temperature={self.temperature} must lie in [{low}, {high}]; 0.07 is usual")
        at_least(self, "model", 1, "embed")
        layered = self.backbone in ("albef", "meter")
        if layered != bool(self.text.fusion_layers):
            raise UserError(
                f"model.text.fusion_layers={self.text.fusion_layers} does not fit model.backbone={self.backbone}: "
                + ("it needs at least one, 6 are usual" if layered else "it has none; set it to 0")
            )

    def at_image_size(self, side: int | None) -> "ModelConfig":
        """The same for square pictures of another size; None changes nothing.

        Raises:
            UserError: The side is no whole number of patches.
        """
        if side is None:
            return self
        patch = self.vision.patch
        if side < 1 or side % patch:
            near = max(1, round(side / patch)) * patch
            raise UserError(f"trim.image_size={side} must be a multiple of model.vision.patch={patch}; try {near}")
        return replace(self, vision=replace(self.vision, height=side, width_px=side))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `dataclasses.asdict`, for a config.json.

        Raises:
            UserError: Keys are missing or unknown, as in a file of another version.
        """
        try:
            parts = {
                "vision": VisionConfig(**values["vision"]),
                "text": TextConfig(**values["text"]),
                "fusion": FusionConfig(**values["fusion"]),
            }
            return cls(**{**values, **parts})
        except (KeyError, TypeError) as error:
            raise UserError(f"its config.json does not tell the sizes of a model ({error}); export it again") from error
