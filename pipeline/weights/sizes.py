"""Sizes of a model from the shapes of its tensors, under our names."""

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.config import ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.weights.loaded import Hints, heads_of
from pipeline.weights.positions import fit_positions

_Model = TypeVar("_Model", bound=nn.Module)

POSITIONS = "visual_encoder.pos_embed"


def vision_sizes(tensors: Mapping[str, Tensor], hints: Hints) -> VisionConfig:
    """The vision tower of a file, for square pictures.

    Raises:
        UserError: Tensors are missing that tell its size, or its position table is not square.
    """
    filters = _tensor(tensors, "visual_encoder.patch_embed.proj.weight", 4)
    width, patch = filters.shape[0], filters.shape[-1]
    side = _grid(tensors) * patch if hints.image_size is None else hints.image_size
    return VisionConfig(
        height=side,
        width_px=side,
        patch=patch,
        width=width,
        depth=count(tensors, "visual_encoder.blocks."),
        heads=heads_of(width, hints.vision_heads, "vision"),
        mlp_ratio=_ratio(len(_tensor(tensors, "visual_encoder.blocks.0.mlp.fc1.weight", 2)), width),
    )


def text_sizes(tensors: Mapping[str, Tensor], prefix: str, hints: Hints, fusion_layers: int = 0) -> TextConfig:
    """A text stack of a file.

    Args:
        tensors: By our names.
        prefix: What the names of embeddings and layers begin with.
        hints: How many heads it has.
        fusion_layers: How many of its layers stand on top of the text layers.

    Raises:
        UserError: Tensors are missing that tell its size.
    """
    vocab_size, width = _tensor(tensors, f"{prefix}embeddings.word_embeddings.weight", 2).shape
    types = f"{prefix}embeddings.token_type_embeddings.weight"
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        text_layers=count(tensors, f"{prefix}encoder.layer.") - fusion_layers,
        fusion_layers=fusion_layers,
        heads=heads_of(width, hints.text_heads, "text"),
        hidden=len(_tensor(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)),
        max_positions=len(_tensor(tensors, f"{prefix}embeddings.position_embeddings.weight", 2)),
        type_rows=len(_tensor(tensors, types, 2)) if types in tensors else 0,
    )


def embed_size(tensors: Mapping[str, Tensor]) -> int:
    """E; the usual one for models without contrast."""
    name = "vision_proj.weight"
    return len(_tensor(tensors, name, 2)) if name in tensors else ModelConfig().embed


def count(tensors: Mapping[str, Tensor], prefix: str, inside: str = "") -> int:
    """How many numbers follow a prefix, in names that hold `inside`."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    matches = (pattern.match(name) for name in tensors if inside in name)
    return len({match[1] for match in matches if match})


def with_positions(tensors: Mapping[str, Tensor], vision: VisionConfig) -> dict[str, Tensor]:
    """The same tensors with the position table of another resolution."""
    return fit_positions(tensors, POSITIONS, vision.grid)


def new_model(make: Callable[[ModelConfig], _Model], config: ModelConfig, like: Mapping[str, Tensor]) -> _Model:
    """A model on the device of these tensors and in their precision, at least float32."""
    table = like[POSITIONS]
    with table.device:
        return make(config).to(torch.promote_types(table.dtype, torch.float32))


def _ratio(hidden: int, width: int) -> float:
    """What a width is multiplied by, and rounded down, to give `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _grid(tensors: Mapping[str, Tensor]) -> int:
    """Patches along a side."""
    patches = _tensor(tensors, POSITIONS, 3).shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{POSITIONS} has {patches} patches, which is no square; only square pictures can be read")
    return side


def _tensor(tensors: Mapping[str, Tensor], name: str, axes: int) -> Tensor:
    if name not in tensors:
        raise UserError(f"{name} is missing, so the sizes cannot be told; check that --kind is that of the file")
    tensor = tensors[name]
    if tensor.ndim != axes or not tensor.is_floating_point():
        raise UserError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}; numbers with {axes} axes are wanted")
    return tensor
