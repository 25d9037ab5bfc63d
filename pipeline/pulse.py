"""Signs of life that a training process gives to whoever started it, and the request to leave that it can be given.

    pulse.rank0.json    rewritten each second by a thread: a process that is stopped or whose machine hangs falls silent
    leave               made by whoever wants the training to save a checkpoint and end

The files lie in the stage's folder. A process whose steps do not go on, though its threads do, ends itself.
"""

import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

from pipeline.repeating import Repeating

log = logging.getLogger(__name__)

LEAVE = "leave"
STUCK = 75
"""Exit code of a process that ended itself because its steps did not go on, or could not."""
_PULSES = "pulse.rank*.json"
_BYTES = 512
_SECONDS = 1.0
_GAP_SECONDS = 5.0  # between two beats: the whole process was stopped, as by a scheduler that suspends a job
_GRACE_SECONDS = 2.0
_ENDED = ("Z", "X")


class Left(Exception):
    """Training was asked to leave, and did so with a checkpoint; the message says after which step."""


class Pulse:
    """What the training loop tells of its life; this one tells nobody, and is never asked to leave."""

    def step(self, step: int) -> None:
        """Is told after each step, and after each rest; from then on the next one is expected."""

    def rest(self) -> None:
        """From now on no step is expected, until one is told again."""

    def end(self) -> None:
        """Is told that the loop has ended by itself: no step is expected, and what was lost is known."""

    def lost(self, words: str) -> None:
        """Is told, from any thread, that another process was lost, of which the loop may not hear."""

    def asked_to_leave(self) -> bool:
        """Whether somebody wants a checkpoint and the end; costs microseconds, and looks once a second."""
        return False


class FilePulse(Pulse):
    """Signs of life in a file, given while it is open as a context manager.

    Args:
        folder: Of the stage.
        rank: Of this process.
        stall_seconds: Time without a step after which the process counts as stuck, writes down where its threads are,
            and ends itself. It begins with the first step, which may take as long as compilation and data take;
            rests do not count, nor does time in which the process itself was suspended. 0 for never.
    """

    def __init__(self, folder: Path, rank: int, stall_seconds: float = 0.0) -> None:
        self._folder = folder
        self._path = folder / f"pulse.rank{rank}.json"
        self._stall_seconds = stall_seconds
        self._state = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "born": born(os.getpid())}
        self._step: int | None = None
        self._moved: float | None = None
        self._loss: tuple[str, float] | None = None
        self._looked, self._asked = 0.0, False
        self._beats = 0
        self._beaten, self._away = time.monotonic(), 0.0
        self._beating = Repeating(self._beat, _SECONDS, "pulse")

    def __enter__(self) -> "FilePulse":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(b" " * _BYTES)
        self._beaten = time.monotonic()
        self._write()
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beating.close()
        self._path.unlink(missing_ok=True)

    def step(self, step: int) -> None:
        """See `Pulse.step`."""
        self._step, self._moved = step, self._awake()

    def rest(self) -> None:
        """See `Pulse.rest`."""
        self._moved = None  # a loss stays: the loop may wait for the lost one while it rests

    def end(self) -> None:
        """See `Pulse.end`."""
        self._moved = self._loss = None

    def lost(self, words: str) -> None:
        """See `Pulse.lost`: unless the loop comes to its end by itself very soon, this process ends."""
        self._loss = words, self._awake()

    def asked_to_leave(self) -> bool:
        """See `Pulse.asked_to_leave`."""
        now = time.monotonic()
        if now - self._looked >= _SECONDS:
            self._looked, self._asked = now, (self._folder / LEAVE).exists()
        return self._asked

    def _awake(self) -> float:
        """Seconds of a clock that stood still while the process was suspended."""
        return time.monotonic() - self._away

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beaten > _GAP_SECONDS:
            self._away += now - self._beaten
        self._beats += 1
        self._write()
        self._beaten = time.monotonic()  # behind the write: a slow file system is no suspension
        moved = self._moved
        if self._stall_seconds and moved is not None and self._awake() - moved > self._stall_seconds:
            self._give_up(f"no step for {self._stall_seconds:g} s after step {self._step}")
        loss = self._loss
        if loss is not None and self._awake() - loss[1] > _GRACE_SECONDS:
            self._give_up(f"{loss[0]}, after step {self._step}")

    def _write(self, **more: str) -> None:
        """In place, so that a full disk does not stop it; opened anew each time, as network file systems need it."""
        text = json.dumps({**self._state, "beat": self._beats, "step": self._step, **more})
        try:
            with open(self._path, "r+b") as file:
                file.write(text.encode().ljust(_BYTES)[:_BYTES])
        except OSError as error:
            log.debug("no sign of life could be given", exc_info=error)

    def _give_up(self, words: str) -> None:
        try:
            self._write(stuck=words)
            log.handle(_stuck_record(words))
            sys.stderr.write(f"trimline: {words}, so this process ends; what was saved stays\n")
            sys.stderr.flush()
        finally:  # whether or not anybody is left who hears of it
            os._exit(STUCK)


def _stuck_record(words: str) -> logging.LogRecord:
    """What the log is told; the stacks are of all threads, where `stack_info=True` would be this one's."""
    stacks = "\n".join("".join(traceback.format_stack(frame)) for frame in sys._current_frames().values())
    text = "%s: this process is stuck and ends itself"
    told = f"its threads are at\n{stacks}"
    return log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (words,), None, sinfo=told)


def read_pulses(folder: Path) -> dict[int, dict[str, object]]:
    """The last sign of life of each process that gave one and did not end in order, by rank."""
    pulses = {}
    for path in folder.glob(_PULSES):
        try:
            pulse = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # just being made, or removed
            continue
        except OSError as error:  # a network file system that does not answer for a moment
            log.debug("a sign of life could not be read", exc_info=error)
            continue
        pulses[int(pulse["rank"])] = pulse
    return pulses


def clear_pulses(folder: Path) -> None:
    """Removes signs of life, and a request to leave, of an earlier attempt."""
    for path in [folder / LEAVE, *folder.glob(_PULSES)]:
        path.unlink(missing_ok=True)


def born(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks, so that its number is not taken for another's."""
    stat = _stat(pid)
    return None if stat is None else int(stat[19])


def is_running(pid: object, began: object) -> bool:
    """Whether a process of this machine that began then has not ended; one that nobody has waited for has ended."""
    stat = _stat(pid) if isinstance(pid, int) else None
    return stat is not None and int(stat[19]) == began and stat[0] not in _ENDED


def kill(pid: int, began: int | None) -> bool:
    """Kills a process of this machine unless its number is another's by now; says whether it did."""
    if began is None or born(pid) != began:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def _stat(pid: int) -> list[str] | None:
    """What the kernel says of a process, from its state on; its name, which comes before, may hold anything."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
