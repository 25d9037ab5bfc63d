"""Finished stages of another run that were made from the same things: taken over instead of made once more."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import remove_folder
from launch.graph import Stage, fingerprints, is_finished, read_status

log = logging.getLogger(__name__)

_ASIDE = ".taken"
_LEFT_BEHIND = shutil.ignore_patterns("checkpoints")  # of a finished stage only what it made is wanted


def take_over(stages: Sequence[Stage], out: Path, other: Path) -> list[str]:
    """Gives a run the stages that another one has finished with the same fingerprint.

    Files are linked where both folders lie on one disk: finished stages are only ever read, or removed as a whole.

    Args:
        stages: Of this run.
        out: Its folder.
        other: The other run's folder.

    Returns:
        Names of the stages.

    Raises:
        UserError: The other folder holds no run.
    """
    if not (other / "stages").is_dir():
        raise UserError(f"take_from={other} holds no run; give the folder of one, such as runs/demo")
    taken = []
    for stage in stages:
        digest = fingerprints(stages)[stage.name]
        if is_finished(stage, digest) or not _has(stage, digest, out, other):
            continue
        for tree in _trees(stage, out, other):
            _take(other / tree, out / tree)
        taken.append(stage.name)
    if taken:
        log.info("taken from %s: %s", other, ", ".join(taken))
    return taken


def _has(stage: Stage, digest: str, out: Path, other: Path) -> bool:
    status = read_status(other / stage.folder.relative_to(out))
    done = status.get("state") == "done" and status.get("fingerprint") == digest
    return done and all((other / path.relative_to(out)).exists() for path in stage.outputs)


def _trees(stage: Stage, out: Path, other: Path) -> Iterator[Path]:
    """Folders that a stage made, relative to the run's; its own comes last, for its status says that all is there."""
    for output in stage.outputs:
        if not output.is_relative_to(stage.folder):
            place = output.relative_to(out)
            yield place.parent if (other / place).is_file() else place
    yield stage.folder.relative_to(out)


def aside_of(folder: Path) -> Path:
    """Where a folder is copied to first; hidden, as what a killed process leaves there is no stage and no split."""
    return folder.with_name(f".{folder.name}{_ASIDE}")


def _take(there: Path, here: Path) -> None:
    aside = aside_of(here)
    for old in (aside, here):
        remove_folder(old)
    here.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(there, aside, copy_function=_link, ignore=_LEFT_BEHIND)
    aside.rename(here)


def _link(source: str, target: str) -> None:
    with contextlib.suppress(OSError):  # another disk, or one without links
        os.link(source, target)
        return
    shutil.copy2(source, target)
