"""A vision tower's weights from a ViT of timm, a CLIP, or an exported backbone, at any resolution."""

import re
from collections.abc import Mapping

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.vision import VisionTower
from pipeline.weights.clip import HUGGINGFACE_CLIP, OPENAI_CLIP, check_tower
from pipeline.weights.described import check_switches
from pipeline.weights.mapping import NameMap, drop, fill, import_tensors, keep, rename
from pipeline.weights.positions import fit_positions
from pipeline.weights.reading import Foreign

_TOWER = "visual_encoder."
_BLOCK = re.compile(r"blocks\.(\d+)\.")

TIMM = NameMap(
    (
        # What classifies pictures of ImageNet.
        drop("{head:head|fc_norm}.{p}"),
        rename("{rest}", _TOWER + "{rest}"),
    ),
    "a ViT of timm",
)

# Ours, ALBEF's and BLIP's.
_BACKBONE = NameMap((keep(_TOWER + "{rest}"), drop("{rest}")), "a backbone")

_KINDS = {
    "patch_embed.proj.weight": TIMM,
    "visual.conv1.weight": OPENAI_CLIP,
    "vision_model.embeddings.patch_embedding.weight": HUGGINGFACE_CLIP,
    _TOWER + "patch_embed.proj.weight": _BACKBONE,
}
"""Kinds of files by a name that each has."""


def load_vision(tower: VisionTower, foreign: Foreign) -> list[str]:
    """Fills a tower; the position table is resized to the tower's pictures.

    A tower of fewer blocks takes the first ones (METER does without CLIP's last).

    Args:
        tower: Gets the weights.
        foreign: Heads and eps of a bare state dict cannot be checked; those of the tower must be right.

    Returns:
        Their names and ours that were left out on purpose.

    Raises:
        UserError: The file is of no known kind, or names or shapes do not fit.
    """
    kind = _kind(foreign)
    if kind is HUGGINGFACE_CLIP:
        check_tower("vision", tower.config, foreign)
    imported = import_tensors(foreign.tensors, kind)
    own = {name.removeprefix(_TOWER): t for name, t in imported.tensors.items() if name.startswith(_TOWER)}
    fitting, deeper = _up_to(own, tower.config.depth)
    check_switches(tower.config, own)
    # A tower that was trained on the mean of its tokens has no norm of its own.
    fresh = ["norm."] if "fc_norm.weight" in foreign.tensors and "norm.weight" not in own else []
    fill(tower, fit_positions(fitting, "pos_embed", tower.config.grid), fresh, imported.unknown)
    others = [name for name in imported.tensors if not name.startswith(_TOWER)]
    return [*imported.dropped, *others, *deeper]


def _kind(foreign: Foreign) -> NameMap:
    for name, name_map in _KINDS.items():
        if name in foreign.tensors:
            return name_map
    raise UserError(f"{foreign.path} holds no vision transformer that is known: it has none of {', '.join(_KINDS)}")


def _up_to(tensors: Mapping[str, Tensor], depth: int) -> tuple[dict[str, Tensor], list[str]]:
    """What a tower of so many blocks has use for, and the names of the rest."""
    deeper = [name for name in tensors if (block := _BLOCK.match(name)) and int(block[1]) >= depth]
    return {name: tensor for name, tensor in tensors.items() if name not in deeper}, deeper
