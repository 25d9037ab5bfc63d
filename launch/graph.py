"""A graph of stages: each runs once its inputs are there, is skipped where it is finished, and fails alone."""

import hashlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from data_prep.errors import UserError
from data_prep.files import disk_full, is_disk_full, read_json, remove_folder, write_json
from data_prep.redact import redact
from launch.spent import SINCE, spent

log = logging.getLogger(__name__)

FORMAT = 1  # raised when a stage's files change so that older ones may not be taken over
STATUS = "status.json"
PARTS = "parts.json"
"""What a stage's result depends on, to say what differs where it is to be another."""
_POLL_SECONDS = 0.2

Outcome = Literal["done", "skipped", "failed", "blocked", "stopped"]


class StageFailed(RuntimeError):
    """A stage's failure that is told and recorded already, so that no traceback of ours is wanted."""


class StageLeft(StageFailed):
    """A stage ended before its time because it was asked to; what it saved stays, and the whole run ends."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a stage is told when it runs.

    Attributes:
        folder: Its own folder.
        resumed: Whether an earlier attempt with the same fingerprint left something there to go on from.
        fingerprint: Of the stage: a digest of all that its result depends on.
    """

    folder: Path
    resumed: bool
    fingerprint: str = ""

    def note_restart(self) -> None:
        """Counts that the stage's processes were started once more within this attempt."""
        status = read_status(self.folder)
        write_json(self.folder / STATUS, {**status, "restarts": int(status.get("restarts", 0)) + 1})


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run.

    Attributes:
        name: Its name, unique in the graph.
        folder: Where its status and files lie; nothing else may write there.
        run: Does the work and returns what it made, as JSON-able values. Called again after an interruption, it
            goes on from what it finds in the folder.
        inputs: Names of the stages whose results it uses.
        parts: All else that its result depends on, JSON-able: its configuration.
        outputs: Paths that must exist for the stage to count as finished.
        cpus: CPUs that it keeps busy.
        checkpoints: Folder or URL of its checkpoints, where it makes any: no other stage may replace one that has some
            and is not finished.
        says: What a person is told of it when it begins.
    """

    name: str
    folder: Path
    run: Callable[[Attempt], Mapping[str, Any]]
    inputs: tuple[str, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[Path, ...] = ()
    cpus: float = 1.0
    checkpoints: Path | str | None = None
    says: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a stage failed: one line, whether it was the user's mistake, and what was raised, if that is known."""

    message: str
    by_user: bool
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class GraphResult:
    """How each stage ended, in the order of the graph, and why some failed."""

    outcomes: Mapping[str, Outcome]
    failures: Mapping[str, Failure]

    @property
    def complete(self) -> bool:
        """Whether every stage is finished."""
        return all(outcome in ("done", "skipped") for outcome in self.outcomes.values())


class Observer(Protocol):
    """Somebody who is told what happens, from several threads."""

    def stage_started(self, stage: Stage, attempt: Attempt) -> None:
        """A stage begins or goes on."""

    def stage_ended(self, stage: Stage, outcome: Outcome, seconds: float, message: str) -> None:
        """A stage is over; `message` says why where it failed."""


def fingerprints(stages: Sequence[Stage]) -> dict[str, str]:
    """A digest per stage of everything that its result depends on: its parts and its inputs' digests."""
    digests: dict[str, str] = {}
    for stage in stages:
        missing = [name for name in stage.inputs if name not in digests]
        if missing:
            raise ValueError(f"stage {stage.name}: inputs {missing} must stand before it in the graph")
        whole = {
            "format": FORMAT,
            "parts": stage.parts,
            "inputs": {name: digests[name] for name in stage.inputs},
        }
        digests[stage.name] = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return digests


def read_status(folder: Path) -> dict[str, Any]:
    """A stage's status; empty where it never began or the file is unreadable."""
    try:
        status = read_json(folder / STATUS)
    except (FileNotFoundError, UserError):
        return {}
    return status if isinstance(status, dict) else {}


def is_finished(stage: Stage, fingerprint: str) -> bool:
    """Whether a stage's finished result is there and was made from the same things."""
    status = read_status(stage.folder)
    return (
        status.get("state") == "done"
        and status.get("fingerprint") == fingerprint
        and all(path.exists() for path in stage.outputs)
    )


def all_finished(stages: Sequence[Stage]) -> bool:
    """Whether nothing of a graph would have to run."""
    digests = fingerprints(stages)
    return all(is_finished(stage, digests[stage.name]) for stage in stages)


def run_graph(
    stages: Sequence[Stage],
    cpus: float,
    observer: Observer,
    meanwhile: Callable[[], None] = lambda: None,
) -> GraphResult:
    """Runs what is not finished; stages that do not wait for each other run side by side within `cpus`.

    A failed stage stops only those that need it. A stage that asks for more CPUs than there are runs alone.

    Args:
        stages: In an order where inputs stand before their users.
        cpus: CPUs to share out; with 0 stages run one after the other in the calling thread.
        observer: Is told of each stage's beginning and end.
        meanwhile: Called once in the calling thread where anything has to run, after the first stages have begun
            (where they have threads of their own), to prepare what later ones need.

    Raises:
        UserError: As of `launch.kept.check_kept`; nothing has begun then.
        KeyboardInterrupt: Passed on at once, and raised once a stage has left; stages that still run are left to
            whoever stops their processes.
    """
    from launch.kept import check_kept  # torch comes with it, for which `trimline status` need not wait

    check_kept(stages)
    return _Runner(stages, cpus, observer).run(meanwhile)


class _Runner:
    """The state of one walk through the graph; stages run in threads, decisions are made in the calling one."""

    def __init__(self, stages: Sequence[Stage], cpus: float, observer: Observer) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._digests = fingerprints(stages)
        self._cpus = cpus
        self._observer = observer
        self._outcomes: dict[str, Outcome] = {}
        self._failures: dict[str, Failure] = {}
        self._running: dict[str, threading.Thread] = {}
        self._stopping = False
        self._left = False

    def run(self, meanwhile: Callable[[], None]) -> GraphResult:
        try:
            self._walk(meanwhile)
        except BaseException:
            # What still runs is about to be torn down by the caller; that is no failure of the stage.
            self._stopping = True
            raise
        outcomes = {name: self._outcomes[name] for name in self._stages}
        return GraphResult(outcomes=outcomes, failures=self._failures)

    def _walk(self, meanwhile: Callable[[], None]) -> None:
        if self._cpus == 0 and not all_finished(list(self._stages.values())):
            meanwhile()
        self._start_ready()
        if self._running:
            meanwhile()
        while self._running:
            for name, thread in list(self._running.items()):
                thread.join(_POLL_SECONDS)
                if not thread.is_alive():
                    del self._running[name]
            self._start_ready()
        if self._left:
            raise KeyboardInterrupt

    def _is_finished(self, stage: Stage) -> bool:
        return is_finished(stage, self._digests[stage.name])

    def _start_ready(self) -> None:
        """Decides all that can be decided now: skips, blocks, and starts what fits into the CPUs."""
        for stage in self._stages.values():
            if self._left or stage.name in self._outcomes or stage.name in self._running:
                continue
            inputs = [self._outcomes.get(name) for name in stage.inputs]
            if any(outcome in ("failed", "blocked") for outcome in inputs):
                self._outcomes[stage.name] = "blocked"
                self._observer.stage_ended(stage, "blocked", 0.0, "")
            elif all(outcome in ("done", "skipped") for outcome in inputs):
                self._skip_or_start(stage)

    def _skip_or_start(self, stage: Stage) -> None:
        if self._is_finished(stage):
            self._outcomes[stage.name] = "skipped"
            self._observer.stage_ended(stage, "skipped", 0.0, "")
            return
        busy = sum(self._stages[name].cpus for name in self._running)
        if self._running and busy + stage.cpus > self._cpus:
            return
        if self._cpus == 0:
            self._run_stage(stage)
            return
        # Daemon threads: an interrupted run may not wait for stages whose processes are being stopped.
        thread = threading.Thread(target=self._run_stage, args=(stage,), name=stage.name, daemon=True)
        self._running[stage.name] = thread
        thread.start()

    def _run_stage(self, stage: Stage) -> None:
        began = time.monotonic()
        try:
            attempt = _begin(stage, self._digests[stage.name])
            self._observer.stage_started(stage, attempt)
            outputs = stage.run(attempt)
            missing = [str(path) for path in stage.outputs if not path.exists()]
            if missing:
                raise RuntimeError(f"stage {stage.name} ended without writing {', '.join(missing)}")
            _end(stage.folder, "done", time.monotonic() - began, outputs=dict(outputs))
        except StageLeft:
            self._left = True
        except Exception as error:
            self._fail(stage, error, time.monotonic() - began)
        else:
            self._outcomes[stage.name] = "done"
            self._observer.stage_ended(stage, "done", time.monotonic() - began, "")

    def _fail(self, stage: Stage, error: Exception, seconds: float) -> None:
        if self._stopping:
            return
        if isinstance(error, OSError) and is_disk_full(error):
            error = disk_full(Path(error.filename or stage.folder), error)
        by_user = isinstance(error, UserError)
        told = isinstance(error, UserError | StageFailed)
        message = one_line(error) if told else f"{type(error).__name__}: {one_line(error)}"
        log.debug("stage %s failed", stage.name, exc_info=error)
        try:
            _end(stage.folder, "failed", seconds, error=message)
            if not told:
                with open(stage.folder / "log.txt", "a", encoding="utf-8") as file:
                    file.write(redact("".join(traceback.format_exception(error))))
        except (OSError, UserError) as second:
            # The likely cause is a full disk, and then the first error, which is told anyhow, says so too.
            log.debug("stage %s: its failure could not be recorded", stage.name, exc_info=second)
        self._failures[stage.name] = Failure(message=message, by_user=by_user, error=error)
        self._outcomes[stage.name] = "failed"
        self._observer.stage_ended(stage, "failed", seconds, message)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks and without secrets."""
    return " ".join(redact(str(error)).split()) or type(error).__name__


def _begin(stage: Stage, fingerprint: str) -> Attempt:
    """Marks the stage as running; what was made from other things in its folder is removed first."""
    from launch.kept import is_begun, lie_inside, noted_place

    old, same = read_status(stage.folder), is_begun(stage, fingerprint)
    of_another = old.get("fingerprint", fingerprint) != fingerprint  # though checkpoints elsewhere may be of this one
    if old and not same:
        log.info("stage %s: its configuration or its inputs changed, so it starts over", stage.name)
    if not same or (of_another and not lie_inside(stage)):
        remove_folder(stage.folder)
        old = {}
    stage.folder.mkdir(parents=True, exist_ok=True)
    status: dict[str, Any] = {
        "state": "running",
        "fingerprint": fingerprint,
        "started": old.get("started", _now()),
        "seconds": round(spent(old, stage.folder.iterdir()), 3),
        SINCE: time.time(),
        "restarts": int(old.get("restarts", 0)) + 1 if same else 0,
        "outputs": {},
        "checkpoints": noted_place(stage),
    }
    write_json(stage.folder / PARTS, stage.parts)
    write_json(stage.folder / STATUS, status)
    return Attempt(folder=stage.folder, resumed=same, fingerprint=fingerprint)


def _end(folder: Path, state: str, seconds: float, **more: Any) -> None:
    status = read_status(folder)
    status.pop(SINCE, None)
    total = float(status.get("seconds", 0.0)) + seconds
    write_json(folder / STATUS, {**status, "state": state, "seconds": round(total, 3), "ended": _now(), **more})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
