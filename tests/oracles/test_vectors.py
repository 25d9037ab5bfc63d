"""The golden vectors are found by what they hold, all of them, and a wrong value is seen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.oracles.vectors import GIVEN, KINDS, NAME_LISTS, ROOT, candidates, found, kind_of

HERE = Path(__file__).parent
RESULTS = ("out/", "stack/vqa_logits", "step0/loss_")


def test_every_file_is_of_a_kind_that_is_tested() -> None:
    assert not found().get("unknown"), "no test reads these"
    if GIVEN:
        assert found(), f"TRIMLINE_ORACLES={GIVEN} holds no golden vectors"


@pytest.mark.skipif(not ROOT.is_dir(), reason="no golden vectors on this machine")
def test_other_names_and_other_folders_change_nothing(tmp_path: Path) -> None:
    kinds = {}
    for number, path in enumerate(candidates(ROOT)):
        copy = tmp_path / f"set{number % 2}" / "deeper" / f"v{number}{path.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path.resolve())
        if path.suffix == ".npz":
            copy.with_suffix(".json").symlink_to(path.with_suffix(".json").resolve())
        kinds[copy] = kind_of(path)
    assert candidates(tmp_path) == sorted(kinds)
    assert {path: kind_of(path) for path in candidates(tmp_path)} == kinds
    assert GIVEN or set(kinds.values()) == {*KINDS, *NAME_LISTS}


def oracles(root: Path) -> subprocess.CompletedProcess[str]:
    """The tests of this folder on other vectors, without this file."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE), f"--ignore={__file__}"]
    environment = {**os.environ, "TRIMLINE_ORACLES": str(root), "CI": "true"}
    return subprocess.run(
        command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.skipif(not ROOT.is_dir(), reason="no golden vectors on this machine")
def test_under_another_name_they_pass_and_with_one_changed_value_they_fail(tmp_path: Path) -> None:
    """Of each kind one file as it is, one with a single result off by a hundred-millionth."""
    changed: dict[str, str] = {}
    for kind in KINDS:
        for path in found().get(kind, [])[:1]:
            right, wrong = (tmp_path / name / f"{kind.replace(' ', '_')}_z.npz" for name in ("right", "wrong"))
            for copy in (right, wrong):
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path.with_suffix(".json"), copy.with_suffix(".json"))
            shutil.copyfile(path, right)
            changed[wrong.stem] = change_one_value(path, wrong)
    passed = oracles(tmp_path / "right")
    assert passed.returncode == 0 and "skipped" in passed.stdout, passed.stdout[-3000:]  # no lists of names there
    failed = oracles(tmp_path / "wrong")
    seen = [line for line in failed.stdout.splitlines() if line.startswith("FAILED")]
    for stem, array in changed.items():
        assert any(f"[{stem}]" in line for line in seen), f"{stem}: no test saw that {array} has changed"


def change_one_value(path: Path, copy: Path) -> str:
    """Adds 1e-8 relative to one number of the first result; returns the name of its array."""
    arrays = dict(np.load(path, allow_pickle=False))
    floats = (name for name in arrays if arrays[name].dtype == np.float64)
    name = next(name for name in floats if name.startswith(RESULTS))
    flat = arrays[name].reshape(-1).copy()
    flat[0] += 1e-8 * max(1.0, abs(flat[0]))
    arrays[name] = flat.reshape(arrays[name].shape)
    np.savez(copy, **arrays)
    return name
