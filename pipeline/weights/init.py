"""What pre-training begins with: weights from files instead of drawn ones."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from data_prep.errors import UserError
from pipeline.models.backbone import Backbone
from pipeline.models.clip import Clip
from pipeline.models.config import BackboneName, ModelConfig
from pipeline.models.meter import Meter
from pipeline.weights.albef import ALBEF
from pipeline.weights.blip import BLIP
from pipeline.weights.clip import load_clip
from pipeline.weights.loaded import without_heads
from pipeline.weights.mapping import NameMap, fill, import_tensors
from pipeline.weights.meter import load_meter
from pipeline.weights.momentum import take_apart
from pipeline.weights.positions import fit_positions
from pipeline.weights.reading import Foreign, read_foreign
from pipeline.weights.sizes import POSITIONS
from pipeline.weights.text import load_text
from pipeline.weights.vision import load_vision

_FREE = {"height", "width_px", "dropout"}
"""Sizes in which an exported model may differ from the one that begins with it."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Files of weights, or folders of them, kept as absolute paths; what none of them has is drawn.

    Attributes:
        model: A whole backbone: an export of ours, official weights of the same kind (ALBEF's, BLIP's or
            METER's authors'; a CLIP of OpenAI or Hugging Face).
        vision: A vision tower: a ViT of timm, a CLIP, or a backbone.
        text: A text encoder: BERT or RoBERTa of Hugging Face; for a CLIP, the text tower of a CLIP.
    """

    model: str | None = None
    vision: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        # Worker processes may run in other folders than the command.
        for part in ("model", "vision", "text"):
            if path := getattr(self, part):
                object.__setattr__(self, part, str(Path(path).expanduser().absolute()))

    @property
    def paths(self) -> dict[str, Path]:
        """Those that are given, the whole before its parts."""
        given = {"model": self.model, "vision": self.vision, "text": self.text}
        return {part: Path(path) for part, path in given.items() if path is not None}

    def check(self) -> None:
        """Refuses paths that are not there.

        Raises:
            UserError: Naming the key.
        """
        for part, path in self.paths.items():
            if not path.exists():
                raise UserError(f"pretrain.init.{part}={path} is missing; give a file or folder of weights")


def initialise(model: Backbone, config: InitConfig) -> dict[str, list[str]]:
    """Fills a model, or parts of it.

    Args:
        model: Freshly made.
        config: Where from; a part's own file comes after the whole model's.

    Returns:
        For each file what was left out of it on purpose.

    Raises:
        UserError: A file cannot be read, or does not fit the model.
    """
    dropped = {}
    for part, path in config.paths.items():
        try:
            dropped[part] = _LOADERS[part](model, read_foreign(path))
        except UserError as error:
            raise UserError(f"pretrain.init.{part}={path}: {error}") from error
    return dropped


def _load_model(model: Backbone, foreign: Foreign) -> list[str]:
    if foreign.config is not None and foreign.config.get("kind") == "backbone":
        return _load_export(model, foreign)
    return _OFFICIAL[model.config.backbone](model, foreign)


def _load_export(model: Backbone, foreign: Foreign) -> list[str]:
    assert foreign.config is not None
    exported = ModelConfig.from_dict(foreign.config.get("model", {}))
    if exported.backbone != model.config.backbone:
        raise UserError(f"it is an export of {exported.backbone}; set model.backbone to that")
    for part in ("vision", "text", "fusion"):
        ours, theirs = asdict(getattr(model.config, part)), asdict(getattr(exported, part))
        for name in ours.keys() - _FREE:
            if ours[name] != theirs[name]:
                raise UserError(f"model.{part}.{name}={ours[name]}, it was made with {theirs[name]}; set it to that")
    own, _ = without_heads(foreign.tensors)
    fill(model, fit_positions(own, POSITIONS, model.config.vision.grid))
    return []


def _load_pretrained(model: Backbone, foreign: Foreign, name_map: NameMap) -> list[str]:
    """The online model of a file that may hold momentum copies and queues; training makes its own of these."""
    parts = take_apart(foreign.tensors)
    imported = import_tensors(parts.online, name_map)
    tensors = fit_positions(imported.tensors, POSITIONS, model.config.vision.grid)
    fill(model, tensors, unknown=imported.unknown)
    return [*imported.dropped, *parts.aside]


def _load_vision(model: Backbone, foreign: Foreign) -> list[str]:
    return load_vision(model.visual_encoder, foreign)


_LOADERS: dict[str, Callable[[Backbone, Foreign], list[str]]] = {
    "model": _load_model,
    "vision": _load_vision,
    "text": load_text,
}

_OFFICIAL: dict[BackboneName, Callable[[Backbone, Foreign], list[str]]] = {
    "albef": lambda model, foreign: _load_pretrained(model, foreign, ALBEF),
    "blip": lambda model, foreign: _load_pretrained(model, foreign, BLIP),
    "meter": lambda model, foreign: load_meter(cast(Meter, model), foreign.tensors).dropped,
    "clip": lambda model, foreign: load_clip(cast(Clip, model), foreign),
}
