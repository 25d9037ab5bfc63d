"""Checkpoints of stages that are not finished: they are never removed unasked, wherever they lie.

They may lie where this run's configuration says, where the stage's status says that they went, and in its own folder.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.redact import redact
from data_prep.targets import LocalTarget, open_target
from launch.graph import PARTS, STATUS, Stage, fingerprints, is_finished, read_status
from launch.stage_parts import differences
from pipeline.checkpoint_places import newest_saved
from pipeline.checkpoint_rules import Saved


def check_kept(stages: Sequence[Stage]) -> None:
    """Refuses what would cost the checkpoints of a stage that is not finished, or is sure to fail; it only reads.

    It is asked before anything is written and before any stage runs: an earlier one that is made again may take days.

    Raises:
        UserError: A stage has checkpoints of another configuration, or elsewhere than it is to go on from, or
            damaged ones only; or a place of them does not answer.
    """
    digests = fingerprints(stages)
    for stage in stages:
        if stage.checkpoints is not None and not is_finished(stage, digests[stage.name]):
            _check(stage, digests[stage.name])


def is_begun(stage: Stage, fingerprint: str) -> bool:
    """Whether the same was begun; where the stage's status does not say so, as on another machine, its checkpoints do.

    Raises:
        UserError: They are damaged, or do not answer.
    """
    if read_status(stage.folder).get("fingerprint") == fingerprint:
        return True
    saved = None if stage.checkpoints is None else newest_saved(stage.checkpoints)
    return saved is not None and saved.fingerprint == fingerprint


def lie_inside(stage: Stage) -> bool:
    """Whether a stage's checkpoints go into its own folder, and so with it."""
    if stage.checkpoints is None or "://" in (place := _place(stage.checkpoints)):
        return False
    inside = Path(place).is_relative_to(_place(stage.folder))
    return inside or Path(place).resolve().is_relative_to(stage.folder.resolve())


def noted_place(stage: Stage) -> str | None:
    """Where a stage's checkpoints go, for its status; relative to its folder, which may be moved, if they lie in it."""
    if stage.checkpoints is None:
        return None
    place = _place(stage.checkpoints)
    return os.path.relpath(place, stage.folder) if lie_inside(stage) else place


def _check(stage: Stage, fingerprint: str) -> None:
    made = _is_made(stage)
    if made and lie_inside(stage):
        return  # what is made of them is there, and now another one is asked for
    assert stage.checkpoints is not None
    wanted = _place(stage.checkpoints)
    here = newest_saved(wanted)
    if here is not None and here.fingerprint != fingerprint:
        raise _another(stage, wanted, here)
    if made or (here is not None and read_status(stage.folder).get("fingerprint") == fingerprint):
        return
    for place, saved in _elsewhere_saved(stage, wanted):
        if saved is not None and saved.fingerprint != fingerprint:
            raise _another(stage, place, saved)
        if saved is not None and here is None:
            raise _elsewhere(stage, place, wanted, saved)


def _elsewhere_saved(stage: Stage, wanted: str) -> Iterator[tuple[str, Saved | None]]:
    """The other places in which its checkpoints may lie, and the newest one there."""
    noted = read_status(stage.folder).get("checkpoints")
    if isinstance(noted, str):
        where = noted if "://" in noted else os.path.normpath(stage.folder / noted)
        try:
            place = _place(where)
            saved = newest_saved(place) if place != wanted else None
        except (UserError, OSError) as error:
            raise UserError(
                f"stage {stage.name} may have checkpoints in {redact(str(where))}, which cannot be read ({error}): "
                f"bring it back, or, to go without what is there, remove {stage.folder / STATUS}"
            ) from error
        yield place, saved
    own = _place(stage.folder / "checkpoints")
    yield own, newest_saved(own) if own != wanted else None


def _place(where: Path | str) -> str:
    target = open_target(where)
    return os.path.abspath(target.folder) if isinstance(target, LocalTarget) else str(target)


def _is_made(stage: Stage) -> bool:
    """Whether what some configuration makes of a stage is there."""
    return read_status(stage.folder).get("state") == "done" and all(path.exists() for path in stage.outputs)


def _another(stage: Stage, place: str, saved: Saved) -> UserError:
    place = redact(place)
    return UserError(
        f"stage {stage.name} has a checkpoint of another configuration, {saved.name} in {place}"
        f"{_what_differs(stage, saved)}: give what it was begun with to go on from it; to begin anew, remove "
        f"{place}, give another --out (and --checkpoint.path), or start the whole run over with --fresh"
    )


def _elsewhere(stage: Stage, place: str, wanted: str, saved: Saved) -> UserError:
    return UserError(
        f"stage {stage.name} has its checkpoints in {redact(place)} ({saved.name}), and none in {redact(wanted)}: move "
        "them there, or leave checkpoint.path as it was; to begin anew, remove them, or start the whole run over with "
        "--fresh"
    )


def _what_differs(stage: Stage, saved: Saved) -> str:
    if read_status(stage.folder).get("fingerprint", saved.fingerprint) != saved.fingerprint:
        return ""  # the stage's parts are those of yet another one
    try:
        old = read_json(stage.folder / PARTS)
    except (FileNotFoundError, UserError):
        return ""
    return f" ({differences(old, stage.parts) or 'its inputs have changed'})"
