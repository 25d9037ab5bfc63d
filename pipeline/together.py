"""Work that all processes do together: all of them come out of it, or all of them raise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.files import disk_full, is_disk_full
from pipeline.process import Process

_T = TypeVar("_T")


class RankFailedError(RuntimeError):
    """Another rank failed at what all of them were doing together; its own log has the details."""


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
        UserError: What any rank raised as one, or that its disk is full.
        RankFailedError: Another rank raised something else.
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
    said = f"{type(failure).__name__}: {failure}" if failure else None
    mine = (result, said, isinstance(failure, UserError))
    gathered: list[Any] = [None] * process.world_size
    dist.all_gather_object(gathered, mine, group=group)
    if failure is not None:
        raise failure
    for rank, (_, text, is_user_error) in enumerate(gathered):
        if text is not None:
            raise (UserError(text.partition(": ")[2]) if is_user_error else RankFailedError(f"rank {rank}: {text}"))
    return [entry[0] for entry in gathered]


def _explained(error: Exception, folder: Path | str) -> Exception:
    """The user's error for a full disk, in whichever way a library says so; other errors as they are."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_disk_full(cause):
            return disk_full(Path(folder), cause)
        cause = cause.__cause__ or cause.__context__
    return error
