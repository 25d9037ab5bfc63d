"""Environments of other projects' tools for tests; see launch/peer_environments.py.

They are made on demand in the folder that TRIMLINE_PEERS names, and kept there; without it in a temporary one.
"""

import os
import subprocess
from pathlib import Path

import pytest

from launch.bench_loader_peers import REQUIREMENTS
from launch.peer_environments import VARIABLE, NoEnvironment, peer_python

VERSIONS = {
    "webdataset": ("webdataset==1.0.2", "pillow"),
    "energon": REQUIREMENTS["energon"],
    # The extra holds back webdataset, whose newer versions this loader does not understand.
    "open_clip": ("open_clip_torch[training]==3.3.0",),
    "img2dataset": ("img2dataset==1.47.0",),
}
_BORROWING = {"energon", "open_clip"}


def python_of(name: str, temporary: Path) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing.

    Skips the test where it cannot be made, or fails it where TRIMLINE_PEERS says that it is wanted in CI.
    """
    folder = Path(os.environ.get(VARIABLE) or temporary).expanduser()
    try:
        return peer_python(folder, name, VERSIONS[name], borrow=name in _BORROWING)
    except NoEnvironment as error:
        refuse = pytest.fail if os.environ.get("CI") and os.environ.get(VARIABLE) else pytest.skip
        refuse(str(error))


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
