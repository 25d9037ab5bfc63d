"""What travels with a job: the project as it is here, and the run's whole configuration.

Data never travel: they are named by URLs, or by paths that all machines of the cluster see.
"""

import fnmatch
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.errors import UserError
from data_prep.files import write_atomic
from launch.config import RunConfig
from launch.reading import as_json, dump_config

CONFIG = "trimline_run.yaml"
MOST_BYTES = 100 << 20  # Ray takes 512 MiB, all of which would go to every machine
_SECRETS = (
    ".env", ".env.*", ".envrc", ".netrc", ".pypirc", ".git-credentials", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*",
    "id_ed25519*", "id_ecdsa*", "credentials", "credentials.json", "kaggle.json", "wandb_key*", "*_auth_token",
)  # fmt: skip
_PACKAGES = ("data_prep", "pipeline", "launch")
_HERE = Path(__file__).resolve().parents[2]

# The keys that name files (`pretrain.init` makes its own absolute); relative ones would be sought in a folder of the
# job's own on another machine.
_PATHS = (
    ("out",),
    ("data", "root"),
    ("data", "annotations"),
    ("data", "images"),
    ("data", "cache"),
    ("data", "clean", "exclude"),
    ("loader", "cache_dir"),
    ("checkpoint", "path"),
    ("tokenizer", "path"),
)


def check_portable(config: RunConfig) -> None:
    """Refuses a run that could not work on other machines.

    Raises:
        UserError: It is not Ray's to start, or names files by relative paths.
    """
    if config.launcher != "ray":
        raise UserError(f"launcher={config.launcher} cannot run on a cluster; set --launcher ray")
    values = as_json(config)
    for keys in _PATHS:
        for path in _texts(values, keys):
            if not ("://" in path or PurePosixPath(path).is_absolute()):
                raise UserError(
                    f"{'.'.join(keys)}={path} is relative, but the job has a folder of its own on other machines; "
                    "give an absolute path that all of them see, or a URL"
                )


def _texts(values: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """The text of a key, or those of its list; there of `SPLIT=FILE` the file."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    if isinstance(values, str):
        yield values
    for value in values if isinstance(values, list) else ():
        yield value if "://" in value or value.startswith("/") else value.partition("=")[2] or value


def make_working_dir(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Copies the project and writes the configuration.

    A checkout gives what git does not ignore, changes that are not committed included, but no files that keep keys by
    custom (`.env`, `*.pem`); an installation its packages.

    Args:
        config: Of the run.
        folder: Empty; becomes the job's working directory.

    Returns:
        How many files, and their bytes.

    Raises:
        UserError: They are too large to travel.
    """
    files = list(_project_files())
    sizes = {path: path.stat().st_size for path, _ in files}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"{_HERE} has {sum(sizes.values()) / 2**20:.0f} MiB, the largest file being {largest} with "
            f"{sizes[largest] / 2**20:.0f} MiB; at most {MOST_BYTES >> 20} MiB travel with a job: let .gitignore name "
            "what need not, and put data where all machines see them"
        )
    for path, name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    write_atomic(folder / CONFIG, dump_config(config))
    return {"files": len(files) + 1, "bytes": sum(sizes.values())}


def _project_files() -> Iterator[tuple[Path, str]]:
    """Each file with its name in the working directory."""
    listed = _git_files()
    if listed is not None:
        # What .gitignore says is done; Ray would apply it once more.
        names = (name for name in listed if PurePosixPath(name).name != ".gitignore" and not _is_secret(name))
        yield from ((_HERE / name, name) for name in names if (_HERE / name).is_file())
        return
    for package in _PACKAGES:
        for path in sorted((_HERE / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, path.relative_to(_HERE).as_posix()


def _is_secret(name: str) -> bool:
    """Whether a file is one of those that keep keys by custom: nobody wants them on every machine of a cluster."""
    return any(fnmatch.fnmatch(PurePosixPath(name).name.lower(), pattern) for pattern in _SECRETS)


def _git_files() -> list[str] | None:
    """What git knows or would take in; None where this is no checkout of ours."""
    if not (_HERE / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(_HERE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return sorted(filter(None, done.stdout.split("\0"))) if done.returncode == 0 else None
