"""Where each loader worker is, in memory that it shares with the trainer, and the watch that looks there.

A worker writes two short notes for each sample, a third of a microsecond each; nobody waits for anybody. The trainer
reads them only when no batch has come for long.
"""

import logging
import multiprocessing
import struct
import time
from collections.abc import Callable
from ctypes import c_ubyte
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType

from pipeline.repeating import Repeating

logger = logging.getLogger(__name__)

_NOTE = struct.Struct("d4q")  # monotonic seconds, activity, step, source, row
_LOOKS = 4  # times that the watch looks within the seconds it allows


class Activity(IntEnum):
    """What a worker is at."""

    WAITING = 0
    READING = 1
    DECODING = 2
    TOKENISING = 3


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a worker said last.

    Attributes:
        seconds: how long ago; None if it has said nothing yet.
        activity: what it is at.
        step: the global step whose batch it makes, or made last.
        source: which source of the mix the sample is from.
        row: of the sample.
    """

    seconds: float | None
    activity: Activity
    step: int
    source: int
    row: int


class WorkerBoard:
    """A place for one note of each worker. It goes through a fork, and through pickling at the start of a process."""

    def __init__(self, workers: int) -> None:
        """Takes the memory.

        Args:
            workers: how many write; at least one.
        """
        self.workers = workers
        # Without a lock, which would be a way to hang. Each worker has room for two notes, which it writes in turn, and
        # a byte that counts them: who reads while it writes, or after it was stopped in the middle, takes the other.
        self._cells = multiprocessing.RawArray(c_ubyte, (1 + 2 * _NOTE.size) * workers)

    def write(self, worker: int, activity: Activity, step: int, source: int = 0, row: int = 0) -> None:
        """Replaces a worker's note."""
        count = (self._cells[worker] + 1) % 256
        _NOTE.pack_into(self._cells, self._place(worker, count), time.monotonic(), activity, step, source, row)
        self._cells[worker] = count

    def _place(self, worker: int, count: int) -> int:
        return self.workers + _NOTE.size * (2 * worker + count % 2)

    def read(self, worker: int) -> Note:
        """A worker's last note."""
        count = -1
        while count != self._cells[worker]:  # else it may be at this one again
            count = self._cells[worker]
            then, activity, step, source, row = _NOTE.unpack_from(self._cells, self._place(worker, count))
        seconds = time.monotonic() - then if then else None
        return Note(seconds=seconds, activity=Activity(activity), step=step, source=source, row=row)


class StallWatch:
    """Says in the log where the workers are each time that no batch has come for so many seconds.

    Used as a context manager, in the process that waits. It looks on from a thread of its own and ends nothing.

    Args:
        seconds: to wait before the first message and between messages; 0 for none at all.
        where: gives a line for each worker.
    """

    def __init__(self, seconds: float, where: Callable[[], list[str]]) -> None:
        self._seconds = seconds
        self._where = where
        self._since: float | None = None
        self._told = 0
        self._looking = Repeating(self._look, seconds / _LOOKS, "stall watch")

    def __enter__(self) -> "StallWatch":
        if self._seconds > 0:
            self._looking.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._looking.close()

    def waits(self) -> None:
        """From now on somebody waits for a batch."""
        self._since = time.monotonic()

    def goes_on(self) -> None:
        """The batch is there."""
        since, self._since = self._since, None
        if self._told and since is not None:
            logger.warning("the batch came after %.0f s", time.monotonic() - since)
        self._told = 0

    def _look(self) -> None:
        since = self._since
        waited = 0.0 if since is None else time.monotonic() - since
        if waited >= self._seconds * (self._told + 1):
            self._told += 1
            logger.warning("no batch for %.0f s: %s", waited, "; ".join(self._where()))
