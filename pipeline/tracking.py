"""Where a stage's numbers go besides metrics.jsonl: to wandb, from a thread of its own, never at the training's cost.

A key that is missing or a server that cannot be reached is told in a line; the numbers then stay in files of wandb's
in the stage's folder, from which `wandb sync` sends them later. `tracking.json` keeps the id of wandb's run, so that a
stage that goes on after a stop goes on there too, and how often the stage was started.
"""

import logging
import os
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.redact import redact
from pipeline.limits import above_zero
from pipeline.process import Process

log = logging.getLogger(__name__)

TRACKING = "tracking.json"
_SERVER_SECONDS = 20.0  # for its first answer, and for what is left to send at the end
_PATIENCE_SECONDS = 60.0  # for the thread at the end: two modes may have been tried


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's numbers go besides its metrics.jsonl.

    Attributes:
        wandb: ``offline`` keeps them in files in the run folder, which `wandb sync` sends when asked to; ``online``
            sends them at once (key: `wandb login` or WANDB_API_KEY); ``disabled`` does neither.
        project: In wandb.
        entity: User or team in wandb; its default without one.
        group: What the stages of a run have in common in wandb; by default the run's name and a number of its folder.
        run_name: Each stage is called so in wandb, with the stage's name behind; by default the run's name.
        tags: In wandb.
        peak_tflops: What a device can compute at most, in TFLOP/s, for model FLOPs utilisation; by default the maker's
            number for dense bf16 products, where the device is known.
    """

    wandb: Literal["disabled", "offline", "online"] = "offline"
    project: str = "trimline"
    entity: str | None = None
    group: str | None = None
    run_name: str | None = None
    tags: tuple[str, ...] = ()
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if not self.project.strip() or "/" in self.project:
            raise UserError(f"tracking.project={self.project!r} must be a word without '/', such as trimline")
        if self.peak_tflops is not None:
            above_zero(self, "tracking", "peak_tflops")


class Tracker:
    """What a stage tells of itself; this one tells nobody.

    Attributes:
        restarts: How often the stage was started before.
        peak_tflops: Of a device, as configured.
    """

    def __init__(self, restarts: int = 0, peak_tflops: float | None = None) -> None:
        self.restarts = restarts
        self.peak_tflops = peak_tflops

    def log(self, values: Mapping[str, Any]) -> None:
        """Takes in a line of metrics.jsonl; costs microseconds."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Takes in results of the whole stage."""

    def close(self, failed: bool) -> None:
        """Waits for what is under way, but not for ever."""


@contextmanager
def open_tracker(
    config: TrackingConfig, group: str, run: Mapping[str, Any], folder: Path, process: Process
) -> Iterator[Tracker]:
    """The tracker of a stage, closed at the end; only the main process tells and writes anything.

    Args:
        config: Of the run.
        group: Used where `config` names none.
        run: The run's resolved configuration, which holds no secrets.
        folder: Of the stage.
        process: This process.
    """
    if not process.is_main:
        yield Tracker(peak_tflops=config.peak_tflops)
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = _begin(folder, config.wandb != "disabled")
    restarts = state["starts"] - 1
    tracker = Tracker(restarts, config.peak_tflops)
    if config.wandb != "disabled":
        tracker = _WandbTracker(config, restarts, _Identity(config, group, run, folder, state["id"]), state)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.close(failed)


def _begin(folder: Path, wanted: bool) -> dict[str, Any]:
    """Counts the start, and draws an id for wandb where there is none yet."""
    try:
        earlier = read_json(folder / TRACKING)
    except (FileNotFoundError, UserError):
        earlier = {}
    state = {"starts": int(earlier.get("starts", 0)) + 1, "id": earlier.get("id"), "wandb": None, "problem": None}
    if wanted and state["id"] is None:
        state["id"] = secrets.token_hex(6)
    write_json(folder / TRACKING, state)
    return state


class _Identity:
    """What wandb is told about a run of its own."""

    def __init__(
        self, config: TrackingConfig, group: str, run: Mapping[str, Any], folder: Path, run_id: str | None
    ) -> None:
        self.mode = config.wandb
        self.folder = folder
        self.config = dict(run)
        self.arguments: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group or group,
            "name": f"{config.run_name or run.get('name', 'run')}/{folder.name}",
            "job_type": folder.name.partition("-")[0],
            "tags": list(config.tags),
            "id": run_id,
        }


class _WandbTracker(Tracker):
    """Hands lines to a thread that talks with wandb: neither its start nor a slow server delays a step."""

    def __init__(self, config: TrackingConfig, restarts: int, identity: _Identity, state: dict[str, Any]) -> None:
        super().__init__(restarts, config.peak_tflops)
        self._identity = identity
        self._state = state
        self._lines: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if _import_wandb() is None:
            self._tell("wandb is not installed (pip install wandb), so the numbers are in metrics.jsonl only")
            return
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        self._put("log", dict(values))

    def summary(self, values: Mapping[str, Any]) -> None:
        """See `Tracker.summary`."""
        self._put("summary", dict(values))

    def close(self, failed: bool) -> None:
        """See `Tracker.close`."""
        self._put("close", {"exit_code": int(failed)})
        if self._thread is not None:
            self._thread.join(_PATIENCE_SECONDS)
            if self._thread.is_alive():
                self._tell(f"wandb did not end within {_PATIENCE_SECONDS:.0f} s; metrics.jsonl has all numbers")

    def _put(self, kind: str, values: dict[str, Any]) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._lines.put((kind, values))

    def _work(self) -> None:
        """The thread: whatever goes wrong here is told, and ends nothing but itself."""
        try:
            run = self._start()
            while (item := self._lines.get())[0] != "close":
                run.log(item[1]) if item[0] == "log" else run.summary.update(item[1])
            run.finish(**item[1])
            # It ends wandb's own process, and so is over only when all lines are in the file.
            _import_wandb().teardown(**item[1])
        except Exception as error:
            log.debug("wandb failed", exc_info=error)
            self._tell(f"wandb failed ({_line(error)}); metrics.jsonl has all numbers")

    def _start(self) -> Any:
        if self._identity.mode == "online":
            try:
                return self._open("online")
            except Exception as error:
                log.debug("wandb online failed", exc_info=error)
                sync = f"`wandb sync {self._identity.folder / 'wandb'}/offline-run-*` sends them"
                self._tell(f"wandb is not online ({_line(error)}); the numbers are kept in files, {sync}")
                _import_wandb().teardown(exit_code=1)  # it holds on to the id of the run that failed
        return self._open("offline")

    def _open(self, mode: str) -> Any:
        wandb = _import_wandb()
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,  # a remote's address may have a token in it
            x_disable_meta=True,  # the command line belongs to whoever started the process
            init_timeout=_SERVER_SECONDS,
            finish_timeout=_SERVER_SECONDS,
        )
        if mode == "online":
            wandb.setup(settings)
            if not wandb.login(prompt=False, verify=False):
                raise RuntimeError("no key: run `wandb login`, or set WANDB_API_KEY where the training runs")
        run = wandb.init(
            mode=mode,
            dir=str(self._identity.folder),
            config=self._identity.config,
            resume="allow" if mode == "online" else None,
            settings=settings,
            **self._identity.arguments,
        )
        # Wandb's own steps may not fall, but a run that goes on does some of its steps once more.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._note(wandb=mode)
        return run

    def _tell(self, problem: str) -> None:
        log.warning("%s", problem)
        self._note(problem=redact(problem))

    def _note(self, **what: str) -> None:
        """Keeps something for `trimline status` and for the screen of whoever started the run."""
        self._state |= what
        try:
            write_json(self._identity.folder / TRACKING, self._state)
        except (OSError, UserError) as error:  # a full disk is told by whoever needs the space
            log.debug("%s could not be written", TRACKING, exc_info=error)


def _import_wandb() -> Any:
    """Wandb, quiet and without reports to its makers; None where it is missing."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        return None
    logging.getLogger("wandb").propagate = False  # it has files of its own
    return wandb


def _line(error: BaseException) -> str:
    return redact(" ".join(str(error).split()))[:200] or type(error).__name__
