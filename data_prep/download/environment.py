"""img2dataset's own environment: made on demand, outside of the project's.

img2dataset 1.47 requires webdataset < 0.3 and pandas < 3, where Trimline has webdataset 1: one environment cannot hold
both. uv makes it where uv is on the PATH, else `python -m venv` and pip; what is installed is pinned in
`img2dataset.txt`. It lies in `$TRIMLINE_TOOL_ENV`, else in the user's cache folder.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import user_cache

log = logging.getLogger(__name__)

VARIABLE = "TRIMLINE_TOOL_ENV"
_WANTED = ("img2dataset", "standard-imghdr; python_version >= '3.13'")
_PINS = "img2dataset.txt"


def default_folder() -> Path:
    """Where the environment lies if nobody says otherwise; other pins or another Python mean another folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    pins = hashlib.sha256(resources.files(__package__).joinpath(_PINS).read_bytes()).hexdigest()[:8]
    return user_cache() / f"img2dataset-py{sys.version_info.major}.{sys.version_info.minor}-{pins}"


def ensure_environment(folder: Path | None = None) -> Path:
    """Finds or makes the environment.

    Args:
        folder: Where it is, or shall be; by default `default_folder()`. An environment of the user's own that has
            img2dataset is used as it is.

    Returns:
        Its Python.

    Raises:
        UserError: it cannot be made (no network, a full disk), or the folder holds something else.
    """
    folder = (folder or default_folder()).absolute()
    python = folder / "bin" / "python"
    if python.exists():
        _check(python, folder)
        return python
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is no Python environment; give an empty or a new folder with --tool-env DIR")
    log.info("making img2dataset's own environment in %s; this is done once", folder)
    # Whole or absent; no fsync of its 20,000 files, for it can be made again. bin/python finds its packages from where
    # it is, so it may be moved.
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make(aside)
        os.rename(aside, folder)
    except OSError as error:
        if not python.exists():  # else somebody else has made it meanwhile
            raise UserError(f"cannot make {folder}: {error.strerror}; give another folder, --tool-env DIR") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return python


def _make(folder: Path) -> None:
    """Makes and tries it; where uv fails (it has settings of its own), pip has a go."""
    pins = resources.files(__package__).joinpath(_PINS)
    python = str(folder / "bin" / "python")
    with resources.as_file(pins) as file:
        ways = [
            ([sys.executable, "-m", "venv", "--clear", str(folder)],
             [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(file), *_WANTED]),
        ]  # fmt: skip
        if uv := shutil.which("uv"):
            ways.insert(0, (
                [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
                [uv, "pip", "install", "--quiet", "--python", python, "-c", str(file), *_WANTED],
            ))  # fmt: skip
        for number, commands in enumerate(ways):
            problem = next((problem for command in commands if (problem := _run(command))), None)
            if problem is None:
                break
            log.warning("%s failed: %s", Path(commands[1][0]).name, problem)
            if number == len(ways) - 1:
                raise UserError(
                    f"img2dataset could not be installed: {problem}; give an environment with --tool-env DIR"
                )
    _check(Path(python), folder)


def _check(python: Path, folder: Path) -> None:
    """Imports it once: a package may be there and broken."""
    problem = _run([str(python), "-I", "-c", "import img2dataset"])
    if problem:
        raise UserError(
            f"{folder} has no img2dataset that works ({problem}); delete it, or give another --tool-env DIR"
        )


def _run(command: Sequence[str]) -> str | None:
    """Runs a command; returns None where it succeeds, or else its first line about an error, or its last line."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=quiet(), check=False)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in said if line.lower().startswith("error:")]
    return (errors[:1] or said[-1:] or [f"it ended with code {done.returncode}"])[0]


def quiet() -> dict[str, str]:
    """The environment variables for it: without our own Python's, and without its libraries' calls home."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return mine | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
