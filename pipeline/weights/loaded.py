"""What every reader of foreign weights is given and gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a file of weights cannot tell, or shall be otherwise.

    Attributes:
        vision_heads: Heads of the vision tower; None for the width over 64.
        text_heads: Likewise of the text layers.
        fusion_heads: Likewise of METER's co-attention.
        image_size: Side of the pictures in pixels; None for that of the file, else the position table is resized.
    """

    vision_heads: int | None = None
    text_heads: int | None = None
    fusion_heads: int | None = None
    image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with foreign weights.

    Attributes:
        kind: What an export's config.json calls it: ``backbone``, ``blip_vqa``, ...
        config: Its sizes.
        model: In evaluation mode.
        momentum: Momentum copies by the names of the parameters that they follow; empty where there are none.
        queue: State of the feature queue: ``image`` and ``text`` (E, Q), ``next``, and ``ids`` (Q,) with retrieval.
        dropped: Foreign names that were left out on purpose.
    """

    kind: str
    config: ModelConfig
    model: nn.Module
    momentum: Mapping[str, Tensor] = field(default_factory=dict)
    queue: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Written:
    """Weights as another library stores them.

    Attributes:
        tensors: By its names.
        config: Its config.json.
        left_out: Names of ours that it has no place for.
    """

    tensors: Mapping[str, Tensor]
    config: dict[str, Any]
    left_out: tuple[str, ...] = ()


def heads_of(width: int, given: int | None, what: str) -> int:
    """The number of heads: as given, or as usual.

    Raises:
        UserError: It cannot be guessed.
    """
    if given is not None:
        return given
    if width % 64:
        raise UserError(f"the file does not say how many heads its {what} of width {width} has; give --{what}-heads")
    return width // 64
