"""Work that all processes do together: all of them come out of it, or all of them raise."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_prep.errors import DiskFull, NoAnswer, UserError
from data_prep.files import disk_full, is_disk_full, is_refused, is_unanswered, refused, unanswered
from pipeline.process import Process

_T = TypeVar("_T")
_TURN_SECONDS = 2.0


class RankFailedError(RuntimeError):
    """Another rank failed at what all of them were doing together; its own log has the details."""


_KINDS = (NoAnswer, DiskFull, UserError, RankFailedError)  # of failures, the worst last


def together(
    process: Process, work: Callable[[], _T], folder: Path | str, group: dist.ProcessGroup | None = None
) -> list[_T]:
    """Runs `work` on every rank, and returns every rank's result to each; raises on all where one fails.

    Args:
        process: This rank.
        work: Its result must be picklable.
        folder: What is written or read, for the message where the disk is full.
        group: Through which results are exchanged; None for the default one.

    Raises:
        RankFailedError: Another rank raised something that is no UserError.
        UserError: What any rank raised as one.
        DiskFull: The same, or that a rank's disk is full, where no rank has anything worse to say.
        NoAnswer: The same, where no rank has anything worse to say: all ranks raise the same kind.
    """
    failure: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as error:
        failure = _explained(error, folder)
    if process.world_size == 1:
        if failure is not None:
            raise failure
        return [result]
    mine = (result, *_told(failure, process.rank))
    gathered: list[Any] = [None] * process.world_size
    dist.all_gather_object(gathered, mine, group=group)
    worst = max(kind for _, kind, _ in gathered)
    if worst < 0:
        return [entry[0] for entry in gathered]
    if failure is not None and mine[1] == worst:
        raise failure
    raise _KINDS[worst](next(text for _, kind, text in gathered if kind == worst))


def in_split_order(parts: Sequence[Sequence[_T]]) -> Iterator[_T]:
    """What ranks made of their batches, one entry for each, empty ones too, in the order of the split.

    Batches are dealt to ranks in turn.
    """
    return itertools.chain.from_iterable(zip(*parts, strict=True))


def _told(failure: Exception | None, rank: int) -> tuple[int, str]:
    """Which of `_KINDS` a failure is to the other ranks, -1 for none, and in what words."""
    if failure is None:
        return -1, ""
    if isinstance(failure, UserError):
        return next(index for index, kind in enumerate(_KINDS) if isinstance(failure, kind)), str(failure)
    return _KINDS.index(RankFailedError), f"rank {rank}: {type(failure).__name__}: {failure}"


def open_group(silent_seconds: float) -> dist.ProcessGroup:
    """A gloo group of all ranks, which all of them open at the same time.

    Args:
        silent_seconds: Time that each waits for another in it; 0 for torch's half hour.
    """
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=silent_seconds) if silent_seconds else None)
    assert isinstance(group, dist.ProcessGroup)
    return group


def together_at_length(
    process: Process, work: Callable[[], _T], folder: Path | str, group: dist.ProcessGroup | None
) -> list[_T]:
    """As `together`, for work that may keep one rank much longer than another, such as an upload.

    Every other second all of them tell each other that they are there, so that the group's limit of time bounds a
    rank's silence and not its work.

    Raises:
        RuntimeError: A rank was lost, by what gloo says.
    """
    if process.world_size == 1:
        return together(process, work, folder)
    outcome: list[tuple[_T | None, Exception | None]] = []
    worker = threading.Thread(target=_keep, args=(work, outcome), name="work", daemon=True)
    worker.start()
    over = torch.zeros(())
    while not over:
        worker.join(_TURN_SECONDS)
        over = torch.tensor(float(not worker.is_alive()))
        dist.all_reduce(over, dist.ReduceOp.MIN, group)
    return together(process, lambda: _given(outcome), folder, group)


def _keep(work: Callable[[], _T], outcome: list[tuple[_T | None, Exception | None]]) -> None:
    try:
        outcome.append((work(), None))
    except Exception as error:  # for `_given`
        outcome.append((None, error))


def _given(outcome: list[tuple[_T | None, Exception | None]]) -> Any:
    (result, error), *_ = outcome
    if error is not None:
        raise error
    return result


def _explained(error: Exception, folder: Path | str) -> Exception:
    """The user's error for a disk that is full, refuses or does not answer, however a library says so; others as is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_disk_full(cause):
            return disk_full(Path(folder), cause)
        if isinstance(cause, OSError) and is_unanswered(cause) and not isinstance(error, UserError):
            return unanswered(Path(folder), cause)
        if isinstance(cause, OSError) and is_refused(cause) and not isinstance(error, UserError):
            return refused(Path(folder), cause)
        cause = cause.__cause__ or cause.__context__
    return error
