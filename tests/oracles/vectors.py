"""Reads the golden vectors that the methods' reference implementations gave."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(os.environ.get("TRIMLINE_ORACLES", Path(__file__).parents[3] / "shared" / "oracles"))


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


def files(pattern: str) -> list[Any]:
    """Parameters for a test: each matching file, or one that skips (fails under CI) where there is none."""
    found = sorted(ROOT.glob(pattern))
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    missing = f"no golden vectors {pattern} under $TRIMLINE_ORACLES or ../shared/oracles"
    if os.environ.get("CI"):
        return [pytest.param(None, id=missing)]
    return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=missing))]


def load(path: Path | None) -> Vectors:
    """The vectors of a file that `files` named."""
    assert path is not None, "the golden vectors are missing; CI must have them"
    return Vectors(path)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-9) -> None:
    """Equal shape and values in float64."""
    torch.testing.assert_close(ours.detach(), theirs.to(ours.dtype), rtol=tolerance, atol=tolerance)
