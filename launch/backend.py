"""What starts worker processes: the part that all launchers share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.job import Job, WorkerDied, clear, collect


class Backend(ABC):
    """Starts the processes of jobs. `start` once, any number of `run`, `stop` at the end whatever happened.

    Attributes:
        slots: How many one-worker jobs may run side by side.
    """

    slots: int

    @property
    def is_leader(self) -> bool:
        """Whether this process walks through the stages; the others only `follow`."""
        return True

    def follow(self) -> None:
        """Takes part in the leader's jobs until it stops."""
        raise RuntimeError("the processes of this launcher have no leader to follow")

    @abstractmethod
    def start(self) -> None:
        """Makes ready for jobs; may take some seconds."""

    @abstractmethod
    def stop(self) -> None:
        """Ends every process that was started; harmless if there are none."""

    def keep_logs(self, folder: Path) -> None:
        """Copies the launcher's own logs into a folder, for a failure that they may explain; by default it has none."""
        return

    @abstractmethod
    def launch(self, job: Job, workers: int) -> BaseException | None:
        """Starts a job's processes and waits for their end; returns what went wrong, if anything."""

    def run(
        self, job: Job, workers: int, restarts: int = 0, on_restart: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Carries a job out and gives its result; started again from its checkpoint where a process dies.

        Args:
            job: JSON-able, with the stage's `folder`.
            workers: Processes to run it in.
            restarts: How often it may be started again.
            on_restart: Called before each further start.

        Raises:
            UserError: The user's mistake, found by a worker.
            JobFailed: An error in a worker.
            WorkerDied: Worker processes ended without a word, more often than `restarts`.
        """
        folder = Path(job["folder"])
        while True:
            clear(folder)
            failure = self.launch(job, workers)
            try:
                return collect(folder, failure)
            except WorkerDied:
                if restarts == 0:
                    raise
            restarts -= 1
            on_restart()
