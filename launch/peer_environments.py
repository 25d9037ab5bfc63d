"""Environments of other projects' tools, each of its own, for they want other versions than we do.

They are made on demand and kept, in the folder that TRIMLINE_PEERS names, else in the user's cache folder. Torch and
the like, which take gigabytes, are borrowed from our own environment, which pip never changes.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from data_prep.download.environment import quiet
from data_prep.files import write_atomic

log = logging.getLogger(__name__)

VARIABLE = "TRIMLINE_PEERS"
_SECONDS = 900


class NoEnvironment(Exception):
    """An environment cannot be made; the message says why, in one line."""


def default_folder() -> Path:
    """Where environments lie if nobody says otherwise."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "trimline" / "peers"


def peer_python(folder: Path, name: str, wanted: Sequence[str], *, borrow: bool) -> Path:
    """Finds or makes an environment.

    Args:
        folder: Of all such environments.
        name: Of this one.
        wanted: What pip is to install, with versions; others mean another environment.
        borrow: Whether it sees our own packages, after its own.

    Returns:
        Its Python.

    Raises:
        NoEnvironment: it cannot be made: no network, a full disk.
    """
    digest = hashlib.sha256((" ".join(wanted) + sys.version).encode()).hexdigest()[:12]
    place = folder.absolute() / f"{name}-{digest}"
    python = place / "bin" / "python"
    if (place / "complete").exists():
        if borrow:
            _lend(place)  # it may have been made by another checkout, which is gone
        return python
    log.info("making an environment for %s in %s; this is done once", " ".join(wanted), place)
    try:
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(place)])
        if borrow:
            _lend(place)
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
        (place / "complete").touch()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        shutil.rmtree(place, ignore_errors=True)
        said = getattr(error, "stderr", None) or b""
        last = (said.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
        raise NoEnvironment(f"no environment with {' '.join(wanted)} could be made in {folder}: {last}") from error
    return python


def _lend(place: Path) -> None:
    """Lets an environment see our own packages."""
    library = next((place / "lib").glob("python*/site-packages"))
    write_atomic(library / "borrowed.pth", sysconfig.get_path("purelib") + "\n")


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS, env=quiet())
