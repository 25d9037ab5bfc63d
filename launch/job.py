"""A job: what one stage's worker processes are asked to do, and how its result or its error comes back.

Results and errors are JSON files in the stage's folder, so that nothing is pickled and every launcher, or a person,
can read them.
"""

import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import is_disk_full, read_json, write_json
from data_prep.redact import SafeFormatter, redact
from launch.graph import StageFailed
from pipeline.pulse import Left, clear_pulses, read_pulses

if TYPE_CHECKING:
    from pipeline.process import Process

Job = Mapping[str, Any]
RUN_JOB = "pipeline.worker:run_job"
RESULT = "result.json"
_ERRORS = "error.rank*.json"
LOG = "log.txt"
_ERROR_BYTES = 8192
_MESSAGE_CHARACTERS = 1000  # of which one takes 6 bytes at most as JSON


class LogFile(logging.FileHandler):
    """A log in a file that is made when first needed; where the disk is full, lines are lost and nothing else."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """Keeps quiet about a full disk, of which whoever needed the space tells."""
        error = sys.exc_info()[1]
        if not (isinstance(error, OSError) and is_disk_full(error)):
            super().handleError(record)

    def close(self) -> None:
        """Closes the file, what could not be written notwithstanding."""
        try:
            super().close()
        except OSError as error:
            if not is_disk_full(error):
                raise


class JobFailed(StageFailed):
    """A worker process failed by a mistake that is not the user's; the stage's log.txt has the traceback."""


class WorkerDied(StageFailed):
    """A worker process was lost: killed, out of memory, stuck, or gone with its machine.

    Attributes:
        why: In words.
    """

    def __init__(self, message: str, why: str = "a worker was lost") -> None:
        super().__init__(message)
        self.why = why


class JobLeft(StageFailed):
    """The workers saved a checkpoint and ended, as they were asked to."""


def carry_out(job: Job, process: "Process") -> None:
    """Runs a job in a worker process; rank 0 writes the result, a rank that fails writes its error.

    Args:
        job: JSON-able; `folder` is the stage's folder, `function` may name another `module:function` to call
            than the pipeline's.
        process: Which of the workers this is.

    Raises:
        Exception: Whatever the job raised, after it was written down.
    """
    folder = Path(job["folder"])
    with _logging_to(folder, process.rank), _room_for_error(folder, process.rank):
        try:
            result = _function(job)(dict(job), process)
        except Exception as error:
            _write_error(folder, process.rank, error)
            raise
        if process.is_main:
            write_json(folder / RESULT, result)


def clear(folder: Path) -> None:
    """Removes result, errors and signs of life of an earlier attempt."""
    for path in [folder / RESULT, *folder.glob(_ERRORS)]:
        path.unlink(missing_ok=True)
    clear_pulses(folder)


def collect(folder: Path, failure: BaseException | None) -> dict[str, Any]:
    """Reads what the workers left behind.

    Args:
        folder: The stage's folder.
        failure: What the launcher saw go wrong, if anything.

    Raises:
        UserError: The user's mistake that a worker found.
        JobFailed: A worker raised something else.
        JobLeft: They saved and ended, as they were asked to.
        WorkerDied: One of them was lost: it ended without result and without error, or all that the others say is
            that they lost it.
    """
    written = [path for path in folder.glob(_ERRORS) if path.read_bytes().strip()]
    errors = [read_json(path) for path in written]
    # The first to fail is the cause; whoever merely lost a partner tells of another's end.
    causes = [error for error in errors if error["kind"] in ("user", "internal")]
    if causes:
        first = min(causes, key=lambda error: (error["kind"] != "user", error["time"]))
        if first["kind"] == "user":
            raise UserError(first["message"])
        where = _log_path(folder, first["rank"])
        raise JobFailed(f"{first['message']} (rank {first['rank']}; see {where})") from failure
    left = [error["message"] for error in errors if error["kind"] == "left"]
    if left:
        raise JobLeft(left[0])
    if failure is None and (folder / RESULT).exists():
        result = read_json(folder / RESULT)
        if isinstance(result, dict):
            return result
    seen = errors[0]["message"] if errors else _in_words(failure)
    message = f"a worker process of {folder.name} ended without a result{f' ({seen})' if seen else ''}"
    raise WorkerDied(f"{message}; see {folder / LOG}", _who_is_lost(folder)) from failure


def _in_words(failure: BaseException | None) -> str:
    return f"{type(failure).__name__}: {' '.join(redact(str(failure)).split())[:200]}" if failure else ""


def stuck_workers(folder: Path) -> str | None:
    """The workers that ended themselves as stuck, and why, in words; the launcher sees only that they ended."""
    stuck = {rank: pulse["stuck"] for rank, pulse in sorted(read_pulses(folder).items()) if "stuck" in pulse}
    return f"{_workers(stuck)} stuck ({stuck[min(stuck)]})" if stuck else None


def _who_is_lost(folder: Path) -> str:
    """The workers that ended themselves as stuck, or else those that ended without a word while others had one."""
    stuck = stuck_workers(folder)
    if stuck is not None:
        return stuck
    told = {path: bool(path.read_bytes().strip()) for path in folder.glob(_ERRORS)}
    silent = sorted(int(path.name.removeprefix("error.rank").removesuffix(".json")) for path in told if not told[path])
    if silent and len(silent) < len(told):
        return f"{_workers(silent)} lost (it ended without a word)"
    return "a worker was lost"


def _workers(ranks: Iterable[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    return f"worker{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _function(job: Job) -> "Callable[[dict[str, Any], Process], Mapping[str, Any]]":
    module, _, name = str(job.get("function", RUN_JOB)).partition(":")
    function: Callable[[dict[str, Any], Process], Mapping[str, Any]] = getattr(importlib.import_module(module), name)
    return function


def _write_error(folder: Path, rank: int, error: Exception) -> None:
    kind = _kind(error)
    line = " ".join(redact(str(error)).split())[:_MESSAGE_CHARACTERS]
    record = {
        "kind": kind,
        "rank": rank,
        "message": line if kind in ("user", "left") else f"{type(error).__name__}: {line}",
        "time": time.time(),
    }
    with open(_error_path(folder, rank), "r+b") as reserved:
        reserved.write(json.dumps(record).encode())
    if kind in ("internal", "lost"):
        # Into the file only: on the screen one line is enough.
        with open(_log_path(folder, rank), "a", encoding="utf-8") as file:
            file.write(redact(traceback.format_exc()))


def _kind(error: Exception) -> str:
    """``user``: to mend by the user; ``left``: as asked; ``lost``: another process is gone; ``internal``: all else."""
    from pipeline.lost import is_loss  # torch comes with it

    if isinstance(error, UserError):
        return "user"
    if isinstance(error, Left):
        return "left"
    return "lost" if is_loss(error) else "internal"


@contextmanager
def _room_for_error(folder: Path, rank: int) -> Iterator[None]:
    """Keeps room for the record of an error, for the error may be that the disk is full."""
    path = _error_path(folder, rank)
    with open(path, "wb") as file:
        file.write(b" " * _ERROR_BYTES)
        file.flush()
        os.fsync(file.fileno())
    yield
    path.unlink()


def _error_path(folder: Path, rank: int) -> Path:
    return folder / f"error.rank{rank}.json"


def _log_path(folder: Path, rank: int) -> Path:
    return folder / (LOG if rank == 0 else f"log.rank{rank}.txt")


@contextmanager
def _logging_to(folder: Path, rank: int) -> Iterator[None]:
    """Sends what this process logs to the stage's log.txt, other ranks' to a file beside it."""
    handler = LogFile(_log_path(folder, rank))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
