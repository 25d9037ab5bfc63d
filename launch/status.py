"""How far a run is, read from its folder by anybody at any time."""

from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.lock import holder
from launch.graph import STATUS, read_status
from launch.progress import PROGRESS, clock, describe, read_progress

RUN = "run.json"


def read_state(run: Path) -> dict[str, Any]:
    """A run's state as JSON values.

    Raises:
        UserError: where the folder is no run folder.
    """
    try:
        facts = read_json(run / RUN)
    except FileNotFoundError as error:
        raise UserError(f"{run} is no run folder: it has no {RUN}; give the `out` of a `trimline run`") from error
    process = holder(run)
    folders = sorted((path.parent for path in run.glob(f"stages/*/{STATUS}")), key=_begin)
    return {
        "name": facts["name"],
        "process": process,
        "finished": facts["finished"],
        "stages": {folder.name: _stage(folder, process is not None) for folder in folders},
    }


def state_text(state: dict[str, Any]) -> str:
    """The same for people, a line for each stage."""
    if state["process"] is not None:
        head = f"{state['name']}: running, process {state['process']}"
    else:
        head = f"{state['name']}: {'finished ' + state['finished'] if state['finished'] else 'not running'}"
    width = max(map(len, state["stages"]), default=0)
    return "\n".join([head, *(f"  {name:<{width}}  {_words(stage)}" for name, stage in state["stages"].items())])


def _begin(folder: Path) -> str:
    return str(read_status(folder).get("started", ""))


def _stage(folder: Path, alive: bool) -> dict[str, Any]:
    status = read_status(folder)
    state = status.get("state", "unknown")
    return {
        "state": "interrupted" if state == "running" and not alive else state,
        "seconds": status.get("seconds"),
        "restarts": status.get("restarts", 0),
        "error": status.get("error"),
        "progress": None if state == "done" else read_progress(folder / PROGRESS),
    }


def _words(stage: dict[str, Any]) -> str:
    words = str(stage["state"])
    if stage["state"] == "done":
        words += f" in {clock(stage['seconds'])}"
    if stage["progress"]:
        words += f": {describe(stage['progress'])}"
    if stage["error"]:
        words += f": {stage['error']}"
    return words + (f" (started {stage['restarts'] + 1} times)" if stage["restarts"] else "")
