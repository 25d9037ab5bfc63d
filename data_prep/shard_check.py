"""Looks through one shard: every member, every sample, and how they agree with the index."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.afar import at_hand
from data_prep.errors import UserError
from data_prep.faults import Fault, FaultList
from data_prep.files import sha256_file
from data_prep.index import COLUMNS, rows_sha256
from data_prep.keys import digest
from data_prep.parallel import cores, map_in_order
from data_prep.sample_check import TEXT_MEMBERS, Checks, SampleCheck, check_sample
from data_prep.tars import Damage, OnDamage, group_samples, walk

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

TEXT_BITS = {"json": 2, "txt": 4}
"""A bit for each text member: which of them every sample should have may not be known before all were seen."""

# Starting processes takes about as long as looking through so many bytes in this one.
WORTH_A_POOL = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard to look through.

    Attributes:
        path: The tar.
        checks: How closely.
        filesize: What the index says, as the following; None where there is no index.
        sha256: Of the tar's bytes; None where it was written without.
        samples_sha256: Of its rows of samples.npy, where it was written without the other one.
        samples: How many there are.
        rows: Its rows of samples.npy; None where this file is broken.
    """

    path: Path
    checks: Checks
    filesize: int | None = None
    sha256: str | None = None
    samples_sha256: str | None = None
    samples: int | None = None
    rows: Rows | None = None

    def has_rows(self, rows: Rows) -> bool:
        """Whether rows are those that the index has the SHA-256 of."""
        return self.samples_sha256 is not None and rows_sha256(rows) == self.samples_sha256

    def suspects(self, intact: bool) -> Rows | None:
        """The rows that say which samples are as they were, where the shard is not; None where it is, or none do."""
        if intact or self.rows is None or (self.samples_sha256 is not None and not self.has_rows(self.rows)):
            return None
        return self.rows


def with_known(checks: Checks, rows: Rows | None) -> Checks:
    """Adds the samples' checksums in some rows to what is checked.

    They are compared as a set: of a damaged shard samples may be missing, and the others may have moved.
    """
    return checks if rows is None else replace(checks, known=frozenset(rows[:, COLUMNS.index("crc32")].tolist()))


@dataclass(frozen=True, kw_only=True)
class ShardFindings:
    """What was found.

    Attributes:
        path: The tar.
        there: Whether there is such a file.
        filesize: Its size in bytes.
        sha256: Of its bytes.
        intact: Whether its bytes, or its samples, have the checksum that the index says.
        faults: In their order, the many of one kind as a number.
        damaged: Whether bytes of the tar have to be left out: it is broken somewhere, or a sample has a fault.
        samples: How many there are.
        rows: Of those that can be used, as in samples.npy.
        digests: The keys' hashes of all samples, in order.
        good: For each sample 0 where something is wrong with it, else 1 and the bits of its texts (`TEXT_BITS`).
        unusable: The samples that can not be used, by reason.
        texts: How many samples have each text member.
    """

    path: Path
    there: bool
    filesize: int
    sha256: str
    intact: bool
    faults: list[Fault]
    damaged: bool
    samples: int
    rows: Rows
    digests: bytes
    good: bytes
    unusable: Counter[str]
    texts: Counter[str]


def check_shard(task: ShardTask) -> ShardFindings:
    """Looks through one shard; memory grows by some dozen bytes a sample.

    Raises:
        UserError: where the file cannot be read at all.
    """
    if not task.path.is_file():
        fault = Fault(kind="missing shard", where=task.path.name, what="is missing")
        return _nothing(task.path, fault)
    try:
        with at_hand(task.path):
            return _look(task)
    except OSError as error:
        raise UserError(f"cannot read {task.path}: {error.strerror}; mend the disk or the permissions") from error


def is_shard(task: ShardTask, path: Path) -> bool:
    """Whether a file is, by its checksum, the shard of a task."""
    if task.sha256 is not None:
        return sha256_file(path) == task.sha256
    checks = Checks(pictures=False, decode=False, wanted=frozenset())
    return task.has_rows(_walk(ShardTask(path=path, checks=checks), None).rows)


def check_shards(
    tasks: Sequence[ShardTask], workers: int | None = None, progress: Progress | None = None
) -> Iterator[ShardFindings]:
    """Looks through shards in several processes; gives what was found in their order.

    Args:
        tasks: The shards.
        workers: Processes; by default one a core, or this one alone for little work.
        progress: Is told how far it is.
    """
    sizes = [task.path.stat().st_size if task.path.is_file() else 0 for task in tasks]
    workers = workers or (cores() if sum(sizes) >= WORTH_A_POOL else 1)
    done = 0
    for size, findings in zip(sizes, map_in_order(check_shard, tasks, min(workers, len(tasks))), strict=True):
        done += size
        if progress is not None:
            progress(done, sum(sizes))
        yield findings


def samples_of(file: BinaryIO, checks: Checks, on_damage: OnDamage) -> Iterator[SampleCheck]:
    """The samples of an opened tar, judged one by one."""
    for key, members in group_samples(walk(file, on_damage)):
        yield check_sample(key, members, file, checks)


def _nothing(path: Path, fault: Fault) -> ShardFindings:
    return ShardFindings(
        path=path,
        there=False,
        filesize=0,
        sha256="",
        intact=False,
        faults=[fault],
        damaged=True,
        samples=0,
        rows=np.empty((0, len(COLUMNS)), dtype=np.int64),
        digests=b"",
        good=b"",
        unusable=Counter(),
        texts=Counter(),
    )


@dataclass(kw_only=True)
class _Tally:
    """What is gathered on the way through the samples."""

    faults: FaultList = field(default_factory=FaultList)
    damages: int = 0
    entries: "array[int]" = field(default_factory=lambda: array("q"))
    unusable_at: "array[int]" = field(default_factory=lambda: array("q"))
    digests: bytearray = field(default_factory=bytearray)
    good: bytearray = field(default_factory=bytearray)
    unusable: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)

    def add(self, check: SampleCheck, name: str) -> None:
        self.digests += digest(check.key)
        texts = TEXT_MEMBERS & {member.extension for member in check.members}
        self.good.append(0 if check.reasons else 1 + sum(TEXT_BITS[name] for name in texts))
        self.texts.update(texts)
        for kind, what in check.reasons:
            self.faults.add(kind, f"{name}:{check.key}", what)
        if check.unusable is None:
            self.entries.extend(check.row)
        else:
            self.unusable[check.unusable[1]] += 1
            self.unusable_at.append(check.begin)

    @property
    def rows(self) -> Rows:
        """Of the samples that can be used, as in samples.npy."""
        return np.array(self.entries, dtype=np.int64).reshape(-1, len(COLUMNS))


def _look(task: ShardTask) -> ShardFindings:
    name, size, sha256 = task.path.name, task.path.stat().st_size, sha256_file(task.path)
    intact = sha256 == task.sha256
    if task.samples_sha256 is None:
        tally = _walk(task, task.suspects(intact))
    else:
        # Which samples to suspect shows only when all were seen; then they are looked at again.
        tally = _walk(task, None)
        intact = size == task.filesize and task.has_rows(tally.rows)
        tally = tally if intact else _walk(task, task.suspects(intact))
    rows, faults = tally.rows, FaultList()
    changed = _compare_file(task, size, intact, faults)
    faults.extend(tally.faults.listed(name))
    _compare_rows(task, rows, np.array(tally.unusable_at, dtype=np.int64), changed, faults)
    return ShardFindings(
        path=task.path,
        there=True,
        filesize=size,
        sha256=sha256,
        intact=intact,
        faults=faults.listed(name),
        damaged=bool(tally.damages) or not all(tally.good),
        samples=len(tally.good),
        rows=rows,
        digests=bytes(tally.digests),
        good=bytes(tally.good),
        unusable=tally.unusable,
        texts=tally.texts,
    )


def _walk(task: ShardTask, suspects: Rows | None) -> _Tally:
    name, tally = task.path.name, _Tally()

    def on_damage(damage: Damage) -> None:
        tally.damages += 1
        tally.faults.add(damage.kind, name, str(damage))

    with open(task.path, "rb") as file:
        for check in samples_of(file, with_known(task.checks, suspects), on_damage):
            tally.add(check, name)
    return tally


def _compare_file(task: ShardTask, size: int, intact: bool, faults: FaultList) -> bool:
    """Whether the tar's bytes are others than the index says."""
    if task.filesize is not None and size != task.filesize:
        faults.add("count", task.path.name, f"has {size} bytes, the index says {task.filesize}")
        return True
    if not intact and (task.sha256 is not None or task.samples_sha256 is not None):
        faults.add("checksum", task.path.name, "has another checksum than the index says")
        return True
    return False


def _compare_rows(task: ShardTask, rows: Rows, unusable_at: Rows, changed: bool, faults: FaultList) -> None:
    """Compares the samples that can be used with samples.npy; the others have a fault of their own already."""
    stated, found = rows, len(rows)
    if task.rows is not None:
        stated = task.rows[~np.isin(task.rows[:, 0], unusable_at)]
        found += len(task.rows) - len(stated)
    if task.samples is not None and task.samples != found:
        faults.add("count", task.path.name, f"has {found} samples, the index says {task.samples}")
    elif not changed and not np.array_equal(stated, rows):
        what = f"has {found} samples at other places, or with other texts or checksums, than samples.npy says"
        faults.add("samples.npy", task.path.name, what)
