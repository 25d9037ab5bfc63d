"""What starts worker processes: the part that all launchers share."""

import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.graph import StageLeft
from launch.job import Job, JobLeft, WorkerDied, clear, collect, stuck_workers
from launch.watch import Watch
from pipeline.pulse import LEAVE

log = logging.getLogger(__name__)

RESTARTS = "restarts.jsonl"


@dataclass(frozen=True, kw_only=True)
class Care:
    """What is done for a job whose processes are lost.

    Attributes:
        restarts: How often it may be started again without a newer checkpoint in between.
        silent_seconds: See `Watch`.
        newest_step: Says after which step the job's newest complete checkpoint was saved.
        on_restart: Called before each further start that a loss made necessary.
    """

    restarts: int = 0
    silent_seconds: float = 0.0
    newest_step: Callable[[], int] = lambda: 0
    on_restart: Callable[[], None] = lambda: None


class Backend(ABC):
    """Starts the processes of jobs. `start` once, any number of `run`, `stop` at the end whatever happened.

    Attributes:
        slots: How many one-worker jobs may run side by side.
    """

    slots: int

    def __init__(self) -> None:
        self._running: set[Path] = set()
        self._under_way: set[Path] = set()
        self._leaving = False
        self._lock = threading.RLock()  # a signal's handler may come while the main thread has it

    @property
    def is_leader(self) -> bool:
        """Whether this process walks through the stages; the others only `follow`."""
        return True

    def follow(self) -> None:
        """Takes part in the leader's jobs until it stops."""
        raise RuntimeError("the processes of this launcher have no leader to follow")

    @property
    def can_restart(self) -> bool:
        """Whether processes that were lost can be started again here, and not only by whoever started this one."""
        return True

    @abstractmethod
    def start(self) -> None:
        """Makes ready for jobs; may take some seconds."""

    def stop(self) -> None:
        """Ends every process that was started, and starts none any more; harmless if there are none."""
        with self._lock:
            self._leaving = True  # a job that loses its processes now is not to start others
        self._end_all()

    @abstractmethod
    def _end_all(self) -> None:
        """Ends every process that was started."""

    def keep_logs(self, folder: Path) -> None:
        """Copies the launcher's own logs into a folder, for a failure that they may explain; by default it has none."""
        return

    @abstractmethod
    def launch(self, job: Job, workers: int) -> BaseException | None:
        """Starts a job's processes and waits for their end; returns what went wrong, if anything."""

    def available(self, counts: Sequence[int]) -> int:
        """How many workers a job gets now, of the counts that would do; waits for machines where there are too few.

        Args:
            counts: The smallest first.

        Raises:
            UserError: There are not enough machines.
        """
        return counts[-1]

    def has_jobs(self) -> bool:
        """Whether any job is under way, those that wait for machines aside."""
        with self._lock:
            return bool(self._under_way)

    def could_have(self, more: Sequence[int], workers: int) -> bool:
        """Whether a job of so many workers could have one of the larger counts."""
        return False

    def end_process(self, pulse: Mapping[str, Any]) -> bool:
        """Ends a worker that fell silent, by its last sign of life; says whether it did. By default nobody is ended."""
        return False

    def explain(self, failure: BaseException | None) -> str | None:
        """What the launcher knows of a lost worker, in words."""
        return None

    def ask_to_leave(self) -> bool:
        """Asks the training that is under way to end with a checkpoint; says whether there is any. It does not wait."""
        with self._lock:
            self._leaving = True
            for folder in self._running:
                (folder / LEAVE).touch()
            return bool(self._running)

    def run(self, job: Job, counts: Sequence[int] = (1,), care: Care | None = None) -> dict[str, Any]:
        """Carries a job out and gives its result; started again from its checkpoint where a process is lost.

        Args:
            job: JSON-able, with the stage's `folder`; `can_leave` where it heeds a request to leave.
            counts: Processes to run it in: any of these counts, the smallest first.
            care: What is done where some are lost.

        Raises:
            UserError: The user's mistake, found by a worker; or too few machines.
            JobFailed: An error in a worker.
            WorkerDied: Worker processes were lost, more often than may be.
            StageLeft: The job ended with a checkpoint, as `ask_to_leave` asked it to.
        """
        care = care or Care()
        folder, losses, newest = Path(job["folder"]), 0, -1
        workers = self.available(counts)
        while True:
            try:
                return self._attempt(job, workers, counts, care)
            except JobLeft as left:
                if self._leaving:
                    raise StageLeft(str(left)) from left
                workers = self.available(counts)
                log.info("%s: goes on from step %d with %d workers", folder.name, care.newest_step(), workers)
            except WorkerDied as died:
                if self._leaving:
                    raise StageLeft(str(died)) from died
                step = care.newest_step()
                losses = 1 if step > newest else losses + 1
                newest = max(newest, step)
                if losses > care.restarts or not self.can_restart:
                    raise
                detected, workers = time.time(), self.available(counts)
                _tell(folder, died.why, detected, step, workers, f"{losses} of {care.restarts}")
                care.on_restart()

    def _attempt(self, job: Job, workers: int, counts: Sequence[int], care: Care) -> dict[str, Any]:
        folder = Path(job["folder"])
        clear(folder)
        more = [count for count in counts if count > workers]
        watch = Watch(folder, care.silent_seconds, self.end_process, lambda: self.could_have(more, workers))
        with self._lock:
            if self._leaving:
                raise StageLeft(f"{folder.name} was not started: the run is to end")
            self._under_way.add(folder)
            if job.get("can_leave"):
                self._running.add(folder)
        try:
            with watch:
                failure = self.launch(job, workers)
            return collect(folder, failure)
        except WorkerDied as died:
            died.why = watch.why or stuck_workers(folder) or self.explain(died.__cause__) or died.why
            raise
        finally:
            with self._lock:
                self._under_way.discard(folder)
                self._running.discard(folder)


def _tell(folder: Path, why: str, detected: float, step: int, workers: int, restart: str) -> None:
    """One line for the person, and one for who wants to count."""
    number = f"{workers} worker{'s' if workers > 1 else ''}"
    log.warning("%s: %s; going on from step %d with %s, restart %s", folder.name, why, step, number, restart)
    when = datetime.fromtimestamp(detected, UTC).isoformat(timespec="milliseconds")
    line = {"detected": when, "why": why, "step": step, "workers": workers, "restart": restart}
    with open(folder / RESTARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
