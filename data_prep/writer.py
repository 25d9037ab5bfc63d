"""Writes the shards of a split: in parallel, deterministically, and so that a stopped job goes on."""

import concurrent.futures as futures
import contextlib
import hashlib
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.errors import UserError
from data_prep.files import atomic_file, read_json, sha256_file, write_json
from data_prep.images import BadImage
from data_prep.index import INDEX, SAMPLES, ShardEntry, load_index, write_index
from data_prep.records import Record, Skipped, Split, members_of
from data_prep.tars import BLOCK, header, padding

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_PARTS = ".parts"
_NAMED_SKIPS = 100
# Starting processes takes about as long as writing so many samples in this one.
_WORTH_A_POOL = 2000


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What every process needs to know to write any shard of a split."""

    split: Split
    folder: Path
    fingerprint: str
    shard_samples: int

    def write(self, number: int) -> int:
        """Writes one shard and then its side record, whose presence makes the shard trusted.

        Returns:
            How many samples were asked of this shard.
        """
        start = number * self.shard_samples
        stop = min(start + self.shard_samples, len(self.split))
        path = self.folder / shard_name(number)
        skipped: list[tuple[str, str]] = []
        with atomic_file(path) as file:
            rows, sha256 = _write_tar(file, self.split.records(start, stop), skipped)
        part = {
            "fingerprint": self.fingerprint,
            "asked": stop - start,
            "filesize": path.stat().st_size,
            "sha256": sha256,
            "rows": rows,
            "skipped": skipped,
        }
        write_json(self._part(number), part)
        return stop - start

    def finished(self, number: int) -> dict[str, Any] | None:
        """The side record of a shard that is whole and of this very job, or None."""
        path, part_path = self.folder / shard_name(number), self._part(number)
        if not (path.exists() and part_path.exists()):
            return None
        part: dict[str, Any] = read_json(part_path)
        trusted = part["fingerprint"] == self.fingerprint and part["sha256"] == sha256_file(path)
        return part if trusted else None

    def _part(self, number: int) -> Path:
        return self.folder / _PARTS / f"{number:05d}.json"


def shard_name(number: int) -> str:
    """The file name of the shard with this number."""
    return f"{number:05d}.tar"


def _write_tar(
    file: BinaryIO, records: Iterable[Record | Skipped], skipped: list[tuple[str, str]]
) -> tuple[list[tuple[int, int, int, int]], str]:
    """Streams samples into a tar; returns their rows of samples.npy and the tar's SHA-256."""
    digest, position, rows, keys = hashlib.sha256(), 0, [], set[str]()
    for record in records:
        if isinstance(record, Skipped):
            skipped.append((record.key, record.reason))
            continue
        if record.key in keys:
            raise ValueError(f"key={record.key!r} occurs twice in one shard; keys must be unique in a split")
        keys.add(record.key)
        try:
            members = members_of(record)
        except BadImage as error:
            skipped.append((record.key, str(error)))
            continue
        sample = b"".join(header(name, len(data)) + data + padding(len(data)) for name, data in members)
        file.write(sample)
        digest.update(sample)
        rows.append((position, position + len(sample), len(record.captions), len(record.statements)))
        position += len(sample)
    file.write(bytes(2 * BLOCK))
    digest.update(bytes(2 * BLOCK))
    return rows, digest.hexdigest()


def write_split(
    split: Split,
    folder: Path,
    *,
    name: str,
    fingerprint: str,
    shard_samples: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a split's shards, then its index; goes on where an earlier call was stopped.

    The bytes depend on the split and `shard_samples` alone: not on the number of processes or on stops.
    Shards of another fingerprint in the folder are removed, never trusted.

    Args:
        split: Gives the samples by position.
        folder: Where the shards go; made where it is missing.
        name: The name put into the index.
        fingerprint: Stands for everything the bytes depend on.
        shard_samples: Samples a shard (fewer where some are skipped, and in the last).
        workers: Processes; by default as many as this process may use cores, or one for little work.
        progress: Called with samples done and samples asked.

    Returns:
        The account: {"asked", "written", "skipped": {reason: count}, "skipped_keys"}.

    Raises:
        UserError: where the disk is full, or no sample could be written.
    """
    report = progress or _silent
    done = finished_account(folder, fingerprint)
    if done is not None:
        report(done["asked"], done["asked"])
        return done
    try:
        (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; give another one") from error
    job = ShardJob(split=split, folder=folder, fingerprint=fingerprint, shard_samples=shard_samples)
    _clean(job)
    count = math.ceil(len(split) / shard_samples)
    missing = [number for number in range(count) if job.finished(number) is None]
    asked = len(split)
    seen = asked - sum(min(shard_samples, asked - number * shard_samples) for number in missing)
    report(seen, asked)
    for samples in _write_all(job, missing, workers or _workers_for(asked - seen)):
        seen += samples
        report(seen, asked)
    return _finish(job, count, name)


def _workers_for(samples: int) -> int:
    return len(os.sched_getaffinity(0)) if samples >= _WORTH_A_POOL else 1


def _silent(done: int, total: int) -> None:
    pass


def finished_account(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The account of a folder that is complete and of this fingerprint, or None; checks sizes, not bytes."""
    if not (folder / INDEX).exists():
        return None
    try:
        index, _ = load_index(folder)
    except UserError:
        return None  # A broken index makes the folder incomplete; it is written again.
    if index.get("fingerprint") != fingerprint:
        return None
    for shard in index["shardlist"]:
        path = folder / shard["url"]
        if not path.exists() or path.stat().st_size != shard["filesize"]:
            return None
    account: dict[str, Any] = index["account"]
    return account


def _clean(job: ShardJob) -> None:
    """Removes what an earlier job left: the index first, then half-written files and untrusted shards."""
    for path in (job.folder / INDEX, job.folder / SAMPLES):
        path.unlink(missing_ok=True)
    for path in [*job.folder.glob(".*.tmp"), *(job.folder / _PARTS).glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    wanted = {shard_name(number) for number in range(math.ceil(len(job.split) / job.shard_samples))}
    for path in job.folder.glob("[0-9][0-9][0-9][0-9][0-9].tar"):
        if path.name not in wanted or job.finished(int(path.stem)) is None:
            path.unlink()


def _write_all(job: ShardJob, missing: list[int], workers: int) -> Iterator[int]:
    """Writes the missing shards in this process or, where that pays, in several."""
    workers = min(workers, len(missing))
    if workers <= 1:
        for number in missing:
            yield job.write(number)
        return
    # spawn: a forked child of a process that runs threads (torch, Ray, a progress bar) may hang.
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        for future in futures.as_completed([pool.submit(_work, number) for number in missing]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_JOBS: list[ShardJob] = []


def _start_worker(job: ShardJob) -> None:
    _JOBS.append(job)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int) -> int:
    return _JOBS[0].write(number)


def _finish(job: ShardJob, count: int, name: str) -> dict[str, Any]:
    """Puts the side records together into the index, and removes them."""
    entries, skipped = [], list[tuple[str, str]]()
    for number in range(count):
        part = job.finished(number)
        if part is None:
            raise UserError(f"{job.folder / shard_name(number)} changed while it was written; run again")
        skipped += [(key, reason) for key, reason in part["skipped"]]
        if part["rows"]:
            entries.append(_entry(number, part))
        else:
            (job.folder / shard_name(number)).unlink()
    account = _account(len(job.split), skipped)
    if not account["written"]:
        raise UserError(f"no sample of {name} could be written to {job.folder}; skipped: {account['skipped']}")
    write_index(job.folder, entries, name=name, account=account, fingerprint=job.fingerprint)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(job.folder / _PARTS)
    return account


def _entry(number: int, part: Mapping[str, Any]) -> ShardEntry:
    return ShardEntry(url=shard_name(number), filesize=part["filesize"], sha256=part["sha256"], rows=part["rows"])


def _account(asked: int, skipped: list[tuple[str, str]]) -> dict[str, Any]:
    for key, reason in skipped[:_NAMED_SKIPS]:
        logger.warning("skipped sample %s: %s", key, reason)
    return {
        "asked": asked,
        "written": asked - len(skipped),
        "skipped": dict(sorted(Counter(reason for _, reason in skipped).items())),
        "skipped_keys": [key for key, _ in skipped[:_NAMED_SKIPS]],
    }
