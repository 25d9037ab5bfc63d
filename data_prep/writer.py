"""Writes the shards of a split: in parallel, deterministically, and so that a stopped job goes on."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.clean import CleanConfig, Cleaner
from data_prep.duplicates import FOLDER as CHECKSUMS
from data_prep.duplicates import HashJob
from data_prep.errors import UserError
from data_prep.executors import Executor, Work, local_executor
from data_prep.index import INDEX, SAMPLES, samples_size, write_samples, write_shardlist
from data_prep.job import SHARD_NAME, Layout, ShardJob
from data_prep.keys import KeyFile, digest
from data_prep.out_folder import begin
from data_prep.parallel import cores
from data_prep.parts import PARTS, Part, Tally
from data_prep.reasons import LeftOut
from data_prep.records import Split
from data_prep.targets import Target, open_target

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
# Starting processes takes about as long as writing so many samples in this one.
_WORTH_A_POOL = 2000
_TOLD_SKIPS = 10
_EXCLUDED = frozenset({LeftOut.EXCLUDED_ID, LeftOut.EXCLUDED_CHECKSUM})


def write_split(
    split: Split,
    out: str | Path | Target,
    *,
    name: str,
    fingerprint: str,
    layout: Layout,
    clean: CleanConfig | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a split's shards, then its index; goes on where an earlier call was stopped.

    The bytes depend on the split, `layout` and `clean` alone: not on the number of processes or on stops.
    Shards of another fingerprint in the folder are removed, never trusted.

    Args:
        split: Gives the samples by position.
        out: Where the shards go: a folder, made where it is missing, or a URL that fsspec knows.
        name: The name put into the index.
        fingerprint: Stands for everything the bytes depend on.
        layout: How the samples lie in shards.
        clean: What is left out; by default broken pictures alone.
        workers: Processes; by default as many as this process may use cores, or one for little work.
        executor: Does the work in place of processes of this machine.
        progress: Called with samples done and samples asked.

    Returns:
        The account: {"asked", "written", "skipped": {reason: count}, "skipped_keys"}, and "captions"
        {reason: count} where captions were changed or dropped.

    Raises:
        UserError: where the disk is full, the target cannot be written to, or no sample could be written. A split
            of which none is asked, or that the lists of exclusions empty, is a split without shards.
    """
    target = out if not isinstance(out, str | Path) else open_target(out)
    report = progress or _silent
    done = finished_account(target, fingerprint)
    if done is not None:
        remove_side_records(target)
        report(done["asked"], done["asked"])
        return done
    cleaner = Cleaner.of(clean or CleanConfig())
    job = ShardJob(split=split, target=target, fingerprint=fingerprint, layout=layout, cleaner=cleaner)
    target.prepare()
    begin(target, name)
    missing = _clear(job)
    todo = sum(map(job.asked, missing))
    runner = executor or local_executor(_workers_for(target, workers, todo))
    if target.only_here and not runner.in_process:
        raise UserError(f"{target} is in the memory of this process, where no other can write; use workers=1")
    if cleaner.config.duplicates and missing:
        _find_duplicates(job, runner)
    seen = len(split) - todo
    report(seen, len(split))
    for samples in _run(runner, job, missing):
        seen += samples
        report(seen, len(split))
    return _finish(job, name)


def finished_account(out: str | Path | Target, fingerprint: str) -> dict[str, Any] | None:
    """The account of a folder that is complete and of this fingerprint, or None; checks sizes, not bytes."""
    target = out if not isinstance(out, str | Path) else open_target(out)
    try:
        index = json.loads(target.read(INDEX))
        shards = {shard["url"]: shard["filesize"] for shard in index["shardlist"]}
        rows = sum(shard["nsamples"] for shard in index["shardlist"])
        if index["fingerprint"] != fingerprint:
            return None
        account: dict[str, Any] = index["account"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None  # A missing or broken index makes the folder incomplete; it is written again.
    sizes = target.sizes()
    wanted = shards | {SAMPLES: samples_size(rows)}
    return account if all(sizes.get(url) == size for url, size in wanted.items()) else None


def _silent(done: int, total: int) -> None:
    pass


def _workers_for(target: Target, workers: int | None, samples: int) -> int:
    if workers is not None:
        return workers
    return cores() if samples >= _WORTH_A_POOL and not target.only_here else 1


def _run(runner: Executor, work: Work, numbers: list[int]) -> Iterator[int]:
    """One piece alone is done here: starting processes for it would only take time."""
    return map(work, numbers) if len(numbers) < 2 else runner.map(work, numbers)


def _clear(job: ShardJob) -> list[int]:
    """Removes what an earlier job left: the index first, then untrusted shards; returns the parts to write."""
    job.target.remove([INDEX, SAMPLES])
    sizes, missing, trusted = job.target.sizes(), [], set[str]()
    for number, part in enumerate(_parts(job, sizes)):
        if part is None:
            missing.append(number)
        else:
            trusted.update(shard.url for shard in part.shards)
    job.target.remove(name for name in sizes if SHARD_NAME.fullmatch(name) and name not in trusted)
    return missing


def _parts(job: ShardJob, sizes: dict[str, int]) -> Iterator[Part | None]:
    """Every part by its side record, or None for one that has yet to be written."""
    there = job.target.sizes(PARTS)
    names = [job.part_name(number) for number in range(job.count)]
    present = [name for name in names if name.rpartition("/")[2] in there]
    records = zip(present, job.target.read_many(present), strict=True)
    found = next(records, None)
    for name in names:
        if found is None or found[0] != name:
            yield None
        else:
            yield job.trusted(found[1], sizes)
            found = next(records, None)


def _find_duplicates(job: ShardJob, runner: Executor) -> None:
    hashing = HashJob(split=job.split, target=job.target, fingerprint=job.fingerprint, cleaner=job.cleaner)
    missing = hashing.missing()
    logger.info("%s: reading %d samples to find duplicates", job.target, len(job.split))
    for _ in _run(runner, hashing, missing):
        pass
    hashing.decide()


def _finish(job: ShardJob, name: str) -> dict[str, Any]:
    """Puts the side records together into the index, and removes them."""
    shardlist, tally = list[dict[str, Any]](), Tally()

    def rows() -> Iterator[NDArray[np.int64]]:
        with KeyFile() as keys:
            for part in _finished_parts(job):
                ends = np.cumsum([shard.nsamples for shard in part.shards])
                blocks = np.split(part.rows, ends[:-1])
                shardlist.extend(shard.listed(rows) for shard, rows in zip(part.shards, blocks, strict=False))
                tally.add(part.tally)
                keys.add(b"".join(map(digest, part.keys)))
                yield part.rows
            _refuse_repeated(keys, job)

    write_samples(job.target, rows())
    account = _account(len(job.split), tally)
    if account["asked"] and not account["written"] and _EXCLUDED.isdisjoint(account["skipped"]):
        job.target.remove([SAMPLES])
        raise UserError(f"no sample of {name} could be written to {job.target}; skipped: {account['skipped']}")
    write_shardlist(job.target, shardlist, name=name, account=account, fingerprint=job.fingerprint)
    remove_side_records(job.target)
    return account


def _finished_parts(job: ShardJob) -> Iterator[Part]:
    for number, part in enumerate(_parts(job, job.target.sizes())):
        if part is None:
            raise UserError(
                f"{job.target}: part {number} changed while it was written, or cannot be seen from here (what "
                "several machines write must be a folder that they share, or an object store); run again"
            )
        yield part


def _refuse_repeated(keys: KeyFile, job: ShardJob) -> None:
    positions = next(keys.repeated(), None)
    if positions is not None:
        names = itertools.chain.from_iterable(part.keys for part in _finished_parts(job))
        key = next(itertools.islice(names, int(positions[0]), None))
        raise ValueError(f"{type(job.split).__name__} gave key={key!r} twice; keys must be unique in a split")


def remove_side_records(target: Target) -> None:
    """Removes what a complete split no longer needs; a job that was killed at its very end leaves it."""
    for folder in (PARTS, CHECKSUMS):
        target.remove_folder(folder)


def _account(asked: int, tally: Tally) -> dict[str, Any]:
    for key, reason in tally.named[:_TOLD_SKIPS]:
        logger.warning("skipped sample %s: %s", key, reason)
    if tally.skipped.total() > _TOLD_SKIPS:
        logger.warning("skipped %d samples in all", tally.skipped.total())
    account: dict[str, Any] = {
        "asked": asked,
        "written": asked - tally.skipped.total(),
        "skipped": dict(sorted(tally.skipped.items())),
        "skipped_keys": [key for key, _ in tally.named],
    }
    return account | ({"captions": dict(sorted(tally.captions.items()))} if tally.captions else {})
