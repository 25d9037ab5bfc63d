"""Sizes of a model from the shapes of its tensors, under our names."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.config import ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig, resize_positions
from pipeline.weights.loaded import Hints, heads_of

POSITIONS = "visual_encoder.pos_embed"


def vision_sizes(tensors: Mapping[str, Tensor], hints: Hints) -> VisionConfig:
    """The vision tower of a file, for square pictures.

    Raises:
        UserError: Tensors are missing that tell its size, or its position table is not square.
    """
    filters = _tensor(tensors, "visual_encoder.patch_embed.proj.weight")
    width, patch = filters.shape[0], filters.shape[-1]
    side = _grid(tensors) * patch if hints.image_size is None else hints.image_size
    return VisionConfig(
        height=side,
        width_px=side,
        patch=patch,
        width=width,
        depth=count(tensors, "visual_encoder.blocks."),
        heads=heads_of(width, hints.vision_heads, "vision"),
        mlp_ratio=len(_tensor(tensors, "visual_encoder.blocks.0.mlp.fc1.weight")) / width,
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
    vocab_size, width = _tensor(tensors, f"{prefix}embeddings.word_embeddings.weight").shape
    types = tensors.get(f"{prefix}embeddings.token_type_embeddings.weight")
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        text_layers=count(tensors, f"{prefix}encoder.layer.") - fusion_layers,
        fusion_layers=fusion_layers,
        heads=heads_of(width, hints.text_heads, "text"),
        hidden=len(_tensor(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight")),
        max_positions=len(_tensor(tensors, f"{prefix}embeddings.position_embeddings.weight")),
        type_rows=0 if types is None else len(types),
    )


def embed_size(tensors: Mapping[str, Tensor]) -> int:
    """E; the usual one for models without contrast."""
    return len(tensors["vision_proj.weight"]) if "vision_proj.weight" in tensors else ModelConfig().embed


def count(tensors: Mapping[str, Tensor], prefix: str, inside: str = "") -> int:
    """How many numbers follow a prefix, in names that hold `inside`."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    matches = (pattern.match(name) for name in tensors if inside in name)
    return len({match[1] for match in matches if match})


def with_positions(tensors: Mapping[str, Tensor], vision: VisionConfig) -> dict[str, Tensor]:
    """The same tensors with the position table of another resolution."""
    grid = _grid(tensors)
    return {**tensors, POSITIONS: resize_positions(tensors[POSITIONS], (grid, grid), vision.grid)}


def _grid(tensors: Mapping[str, Tensor]) -> int:
    """Patches along a side."""
    patches = _tensor(tensors, POSITIONS).shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{POSITIONS} has {patches} patches, which is no square; only square pictures can be read")
    return side


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"{name} is missing, so the sizes cannot be told; check that --kind is that of the file")
    return tensors[name]
