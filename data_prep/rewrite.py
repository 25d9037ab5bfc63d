"""Writes a damaged shard anew from those of its samples that are whole and right."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_prep.errors import UserError
from data_prep.faults import FaultKind
from data_prep.files import atomic_file
from data_prep.index import Row, ShardEntry
from data_prep.sample_check import Checks, SampleCheck
from data_prep.shard_check import Rows, samples_of, with_known
from data_prep.tars import BLOCK, Member, padding

_CHUNK = 1 << 20
Left = tuple[str, FaultKind, str]


class _NothingGood(Exception):
    """Ends the writing of a shard that would be empty."""


@dataclass(frozen=True, kw_only=True)
class RewriteTask:
    """A shard to write anew.

    Attributes:
        path: The tar.
        checks: What makes a sample good.
        sha256: Of the tar's bytes, as they were looked through.
        drop: Numbers of good samples that are left out, for another one has their key.
        rows: As `ShardTask.suspects` gives them.
    """

    path: Path
    checks: Checks
    sha256: str
    drop: frozenset[int] = frozenset()
    rows: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A shard that was written anew.

    Attributes:
        entry: For the index; None where no sample is good, and the tar was left as it is.
        lost: Key, kind of fault and what is wrong of each sample that is left out.
    """

    entry: ShardEntry | None
    lost: list[Left] = field(default_factory=list)


def rewrite_shard(task: RewriteTask) -> Rewritten:
    """Writes a shard anew; the old one is there until the new one is whole.

    Raises:
        UserError: where the disk is full, or the shard cannot be read or written, or is another one meanwhile.
    """
    lost: list[Left] = []
    try:
        with open(task.path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != task.sha256:  # `drop` would name other samples
                raise UserError(f"{task.path} changed while it was repaired; run the same command again")
            return Rewritten(entry=_write(task, file, lost), lost=lost)
    except _NothingGood:
        return Rewritten(entry=None, lost=lost)
    except OSError as error:
        raise UserError(f"cannot write {task.path} anew: {error.strerror}; mend the disk or the permissions") from error


def _good(task: RewriteTask, file: BinaryIO, lost: list[Left]) -> Iterator[SampleCheck]:
    """The samples that stay; the others are put into `lost`."""
    checks = with_known(task.checks, task.rows)
    for number, check in enumerate(samples_of(file, checks, lambda damage: None)):
        if check.reasons:
            lost.append((check.key, *check.reasons[0]))
        elif number in task.drop:
            lost.append((check.key, "duplicate key", "another sample before it has its key"))
        else:
            yield check


def _write(task: RewriteTask, file: BinaryIO, lost: list[Left]) -> ShardEntry:
    rows: list[Row] = []
    digest = hashlib.sha256()
    with atomic_file(task.path) as out:

        def write(data: bytes) -> None:
            out.write(data)
            digest.update(data)

        for check in _good(task, file, lost):
            begin = out.tell()
            for member in check.members:
                _copy(member, file, write)
            rows.append((begin, out.tell(), check.captions, check.statements, check.checksum))
        if not rows:
            raise _NothingGood
        write(bytes(2 * BLOCK))
        size = out.tell()
    return ShardEntry(url=task.path.name, filesize=size, sha256=digest.hexdigest(), rows=rows)


def _copy(member: Member, file: BinaryIO, write: Callable[[bytes], None]) -> None:
    """Copies a member with its headers as they are; the padding behind it may have been cut off."""
    place, end = member.begin, member.data + member.size
    while place < end:
        data = os.pread(file.fileno(), min(_CHUNK, end - place), place)
        if not data:
            raise UserError(f"{file.name} became shorter while it was repaired; run the same command again")
        write(data)
        place += len(data)
    write(padding(member.size))
