"""How far a run is, read from its folder alone, by anybody at any time."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.lock import holder
from launch.graph import STATUS, read_status
from launch.progress import PROGRESS, read_progress, read_tracking
from launch.spent import spent
from pipeline.progress import NON_FINITE, read_line

RUN = "run.json"
_METRICS = "metrics.jsonl"
_SCORE = "validation/"  # of pipeline.validation, which takes torch to import
_TAIL_BYTES = 1 << 18
_SIGNS = (PROGRESS, _METRICS, "log.txt", STATUS)
_CHECKPOINTS = "checkpoints/step_*/COMPLETE"
_NOTE = "checkpoint.json"  # of pipeline.stage, which takes torch to import
_SPEEDS = ("samples_per_second", "samples_per_second_per_device", "data_wait", "tflops_per_device", "mfu")


def read_state(run: Path) -> dict[str, Any]:
    """A run's state as JSON values.

    Returns:
        ``state`` (``running``, ``finished``, ``failed``, ``stopped`` or ``unfinished``), ``process`` (the one that
        works there), ``last_sign_seconds`` (since something was written there), ``log``, and ``stages`` by name in the
        order of the run.

    Raises:
        UserError: where the folder is no run folder.
    """
    facts = _facts(run)
    process = holder(run)
    now = time.time()
    stages = {name: _stage(run / "stages" / name, process is not None, now) for name in _names(run, facts)}
    _add_waiting(stages, facts.get("stages") or {}, process is not None)
    signs = [run / RUN, run / "launch.log", *(run / "stages" / name / sign for name in stages for sign in _SIGNS)]
    return {
        "name": facts["name"],
        "out": str(run),
        "state": _state(facts, stages, process),
        "process": process,
        "started": facts.get("started"),
        "finished": facts.get("finished"),
        "last_sign_seconds": _age(signs, now),
        "log": _existing(run / "launch.log"),
        "stages": stages,
    }


def is_over(state: Mapping[str, Any]) -> bool:
    """Whether nobody works on the run any more."""
    return state["process"] is None


def _facts(run: Path) -> dict[str, Any]:
    try:
        facts = read_json(run / RUN)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{run} is no run folder: it has no {RUN}; give the `out` of a `trimline run`") from error
    if not isinstance(facts, dict) or "name" not in facts:
        raise UserError(f"{run / RUN} is not of a run; give the `out` of a `trimline run`")
    return facts


def _names(run: Path, facts: Mapping[str, Any]) -> list[str]:
    """The stages that the run is made of, then those that are there besides, in the order of their beginning."""
    planned = list(facts.get("stages") or ())
    # pathlib's star takes hidden names too: those of folders whose removal was stopped.
    there = sorted((path.parent for path in run.glob(f"stages/[!.]*/{STATUS}")), key=_begin)
    return [*planned, *(folder.name for folder in there if folder.name not in planned)]


def _begin(folder: Path) -> str:
    return str(read_status(folder).get("started", ""))


def _stage(folder: Path, alive: bool, now: float) -> dict[str, Any]:
    status = read_status(folder)
    state = status.get("state", "waiting")
    tracking = read_tracking(folder)
    stage = {
        "state": "interrupted" if state == "running" and not alive else state,
        "seconds": spent(status, folder.iterdir()) if status else None,
        "restarts": status.get("restarts", 0),
        "error": status.get("error"),
        "progress": None if state == "done" else read_progress(folder / PROGRESS),
        "checkpoint": _checkpoint(folder, now),
        "wandb": tracking.get("wandb"),
        "wandb_problem": tracking.get("problem"),
        "logs": [str(path) for path in sorted(folder.glob("log*.txt"))],
    }
    return stage | _numbers(folder / _METRICS)


def _numbers(metrics: Path) -> dict[str, Any]:
    """Of the last line of a training's log, and the last scores on held-out data."""
    line = next(_last_lines(metrics), None)
    if line is None:
        return {"step": None, "losses": {}, "speed": {}, NON_FINITE: 0, "validation": None}
    losses = {name: value for name, value in line.items() if name == "loss" or name.startswith("loss/")}
    speed = {name: line[name] for name in _SPEEDS if name in line}
    more = {NON_FINITE: line.get(NON_FINITE, 0), "validation": _validation(metrics)}
    return {"step": line.get("step"), "losses": losses, "speed": speed, **more}


def _validation(metrics: Path) -> dict[str, Any] | None:
    """``step``, each score by its metric, ``best`` and ``best_step``; None where the end of the log has none."""
    for line in _last_lines(metrics):
        scores = {name.removeprefix(_SCORE): value for name, value in line.items() if name.startswith(_SCORE)}
        if scores:
            return {"step": line.get("step"), **scores}
    return None


def _last_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The last whole lines that are JSON objects, the last one first; only the end of the file is read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return
    for text in reversed(tail.split(b"\n")[:-1]):
        try:
            line = read_line(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _checkpoint(folder: Path, now: float) -> dict[str, Any] | None:
    """The step and the age of the newest complete checkpoint, and where it lies, if not in the stage's folder."""
    found = [one for one in (_in_folder(folder, now), _elsewhere(folder / _NOTE, now)) if one is not None]
    return min(found, key=lambda one: float(one["age_seconds"]), default=None)


def _in_folder(folder: Path, now: float) -> dict[str, Any] | None:
    marks = {path.parent.name.removeprefix("step_"): path for path in folder.glob(_CHECKPOINTS)}
    newest = max((name for name in marks if name.isdigit()), default=None, key=int)
    if newest is None:
        return None
    age = _age([marks[newest]], now)
    return None if age is None else {"step": int(newest), "age_seconds": age, "where": None}


def _elsewhere(note: Path, now: float) -> dict[str, Any] | None:
    """That at `checkpoint.path`, as training told when it was complete: who looks may have no keys of the store."""
    try:
        told = read_json(note)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None
    local = "://" not in told["where"]
    if local and not Path(told["where"]).is_dir():
        return None
    age = round(max(0.0, now - told["time"]), 1)
    return {"step": told["step"], "age_seconds": age, "where": told["where"]}


def _add_waiting(stages: dict[str, dict[str, Any]], inputs: Mapping[str, list[str]], alive: bool) -> None:
    """Says what a stage waits for that has not begun, and which will not begin because another one failed."""
    for name, stage in stages.items():
        stage["waits_for"] = []
        if stage["state"] != "waiting":
            continue
        needed = [other for other in inputs.get(name, []) if stages.get(other, {}).get("state") != "done"]
        stage["waits_for"] = needed
        if any(stages.get(other, {}).get("state") in ("failed", "blocked") for other in needed):
            stage["state"] = "blocked"
        elif not alive:
            stage["state"] = "not begun"


def _state(facts: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], process: int | None) -> str:
    states = {stage["state"] for stage in stages.values()}
    if process is not None:
        return "running"
    if facts.get("finished"):
        return "finished"
    if "interrupted" in states:
        return "stopped"
    return "failed" if "failed" in states else "unfinished"


def _age(paths: Iterable[Path], now: float) -> float | None:
    """Seconds since the newest of some files was written; None where none is there."""
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return round(max(0.0, now - max(times)), 1) if times else None


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None
