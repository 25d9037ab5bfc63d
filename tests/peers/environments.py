"""Environments of other projects' tools, each of its own, for they want other versions than we do.

They are made on demand in the folder that TRIMLINE_PEERS names, and kept there; without it in a temporary one. Torch
and the like, which take gigabytes, are borrowed from the environment that runs the tests; pip never changes that one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

VERSIONS = {
    "webdataset": ["webdataset==1.0.2", "pillow"],
    "energon": ["megatron-energon==7.4.1"],
    # The extra holds back webdataset, whose newer versions this loader does not understand.
    "open_clip": ["open_clip_torch[training]==3.3.0"],
    "img2dataset": ["img2dataset==1.47.0"],
}
_BORROWING = {"energon", "open_clip"}
_SECONDS = 900


def python_of(name: str, temporary: Path) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing.

    Skips the test where it cannot be made, or fails it where TRIMLINE_PEERS says that it is wanted in CI.
    """
    wanted = " ".join(VERSIONS[name])
    folder = Path(os.environ.get("TRIMLINE_PEERS") or temporary).expanduser()
    place = folder / f"{name}-{hashlib.sha256((wanted + sys.version).encode()).hexdigest()[:12]}"
    python = place / "bin" / "python"
    if (place / "complete").exists():
        return python
    try:
        _make(place, python, name)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(place, ignore_errors=True)
        output = error.stderr or b""
        last = (output.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
        refuse = pytest.fail if os.environ.get("CI") and os.environ.get("TRIMLINE_PEERS") else pytest.skip
        refuse(f"no environment with {wanted} could be made in {folder}: {last}")
    return python


def _make(place: Path, python: Path, name: str) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(place)])
    if name in _BORROWING:
        library = next((place / "lib").glob("python*/site-packages"))
        (library / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *VERSIONS[name]])
    (place / "complete").touch()


def _run(command: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS, env=environment)


def run_script(python: Path, script: str, *words: str, timeout: float = 300) -> str:
    """Runs a script in a peer's environment; gives what it prints."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(python), "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
