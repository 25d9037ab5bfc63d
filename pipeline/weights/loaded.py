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
        heads: By task the tensors of a classifier beside a backbone, by its own names; METER's alone.
        lacking: Heads of the model, by our names, that the file has not; they are as drawn.
    """

    kind: str
    config: ModelConfig
    model: nn.Module
    momentum: Mapping[str, Tensor] = field(default_factory=dict)
    queue: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()


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


MATCHING = "itm_head"
"""What matches pictures with texts, of every backbone that can."""

_HEADS = "task_heads."
"""Before the names of what stands beside a backbone in an export."""


def with_heads(tensors: Mapping[str, Tensor], heads: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A backbone's tensors and those of the heads beside it, as one export; `without_heads` parts them."""
    return {**tensors, **{f"{_HEADS}{task}.{name}": t for task, head in heads.items() for name, t in head.items()}}


def without_heads(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The backbone's tensors of an export, and those of each head beside it."""
    heads: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_HEADS):
            task, rest = name.removeprefix(_HEADS).split(".", 1)
            heads.setdefault(task, {})[rest] = tensor
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS)}, heads


def lacks_matching(described: Mapping[str, Any]) -> bool:
    """Whether the weights of an export had no head that matches, so that its own is as drawn.

    Args:
        described: Its config.json.
    """
    return MATCHING in described.get("lacking", ())


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
