"""Reads the golden vectors that the methods' reference implementations gave.

They are found by what they hold, wherever they lie under $TRIMLINE_ORACLES and whatever they are called.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GIVEN = os.environ.get("TRIMLINE_ORACLES") or None
ROOT = Path(GIVEN or Path(__file__).parents[3] / "shared" / "oracles")

KINDS = (
    "elip_vit",
    "itc",
    "meter_fusion",
    "albef",
    "blip_pretrain",
    "blip_retrieval",
    "blip_vqa",
    "blip_caption",
    "blip_nlvr",
    "meter",
    "position table resize",
)
"""Kinds of .npz; those of checkpoints are the `model` of their sidecar."""
NAME_LISTS = ("names albef", "names blip", "names meter")
"""Kinds of .json that list the names and shapes of full-size checkpoints."""

# Arrays that only one kind has, for files whose sidecar names no model.
_TELLING = {"elip_vit": "stage2/attn_cls", "itc": "step0/loss_ita", "meter_fusion": "layer/hidden_states"}


class Vectors:
    """Arrays of one .npz as tensors, and what its sidecar says of them."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path, allow_pickle=False)
        self.sidecar: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        self.constants: dict[str, Any] = self.sidecar.get("constants", {})

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """All arrays whose name begins with a prefix, by the rest of the name."""
        return {name[len(prefix) :]: self[name] for name in self.arrays if name.startswith(prefix)}


def kind_of(path: Path) -> str | None:
    """What a file under the root is a vector of; None where it is none that a test reads."""
    if path.suffix == ".npz":
        vectors = Vectors(path)
        told = [kind for kind, array in _TELLING.items() if array in vectors]
        kind = told[0] if told else vectors.sidecar.get("model")
        return kind if kind in KINDS else None
    listed = json.loads(path.read_text())
    if not isinstance(listed, list):
        return None
    names = [name for name, _ in listed]
    if any(name.startswith(("vit_model.", "text_transformer.")) for name in names):
        return "names meter"
    return "names albef" if any("text_encoder.bert." in name for name in names) else "names blip"


def candidates(root: Path) -> list[Path]:
    """All .npz, and all .json that are no sidecar."""
    lists = [path for path in root.rglob("*.json") if not path.with_suffix(".npz").exists()]
    return sorted([*root.rglob("*.npz"), *lists])


@functools.cache
def found() -> dict[str, list[Path]]:
    """The files under the root, by kind."""
    by_kind: dict[str, list[Path]] = {}
    for path in candidates(ROOT):
        by_kind.setdefault(kind_of(path) or "unknown", []).append(path)
    return by_kind


def files(*kinds: str) -> list[Any]:
    """Parameters for a test: each file of these kinds, or one that skips where there is none.

    Under CI the one fails instead, unless other files than the usual ones were given: those may be of some kinds only
    (`test_vectors.py` fails where they are of none).
    """
    assert set(kinds) <= {*KINDS, *NAME_LISTS}
    paths = [path for kind in kinds for path in found().get(kind, [])]
    if paths:
        return [pytest.param(path, id=str(path.relative_to(ROOT).with_suffix(""))) for path in paths]
    missing = f"no golden vectors of {', '.join(kinds)} under {'$TRIMLINE_ORACLES' if GIVEN else '../shared/oracles'}"
    if os.environ.get("CI") and not GIVEN:
        return [pytest.param(None, id=missing)]
    return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=missing))]


def load(path: Path | None) -> Vectors:
    """The vectors of a file that `files` named."""
    assert path is not None, "the golden vectors are missing; CI must have them"
    return Vectors(path)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-9) -> None:
    """Equal shape and values in float64."""
    torch.testing.assert_close(ours.detach(), theirs.to(ours.dtype), rtol=tolerance, atol=tolerance)
