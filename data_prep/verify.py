"""Looks through a shard folder and names everything that is wrong with it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.faults import NAMED, Fault, FaultKind, FaultList
from data_prep.index import INDEX, load_index, read_shard_list, skipped_counts
from data_prep.keys import ShardKeys, key_at
from data_prep.make_index import MEMBERS, tars_of
from data_prep.mirror import remote_url
from data_prep.sample_check import TEXT_MEMBERS, Checks
from data_prep.shard_check import Progress, Rows, ShardTask, check_shards


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a folder's index says, before any shard is opened.

    Attributes:
        folder: Of a split.
        index: The parsed `index.json`, or None where none can be used.
        tasks: The shards to look through: those of the index, or without one all tars.
        orphans: Tars that the index does not name.
        faults: Of the index itself.
    """

    folder: Path
    index: dict[str, Any] | None
    tasks: list[ShardTask]
    orphans: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def find_splits(folder: Path) -> list[Path]:
    """The split folders that a folder is or holds: those with an index or with tars.

    Raises:
        UserError: there is none, or its shards are behind a URL.
    """
    if _is_split(folder):
        splits = [folder]
    else:
        splits = sorted(path for path in folder.glob("[!.]*") if path.is_dir() and _is_split(path))
    if not splits and remote_url(folder) is None and not folder.exists():
        raise UserError(f"there is no folder {folder}; give the folder of a split, or of several")
    if not splits:
        raise UserError(f"{folder} holds neither {INDEX} nor .tar files; give the folder of a split, or of several")
    for split in splits:
        url = remote_url(split)
        if url is not None:
            raise UserError(
                f"{split} holds no shards but the index of those at {url}; give that URL, or their own folder"
            )
    return splits


def _is_split(folder: Path) -> bool:
    return (folder / INDEX).exists() or bool(tars_of(folder))


def verify_folder(
    folder: Path, *, decode: bool = True, workers: int | None = None, progress: Progress | None = None
) -> list[Fault]:
    """Checks a shard folder against its index, and every sample against its own JSON.

    Args:
        folder: A split folder.
        decode: Whether to decode every picture; the slow part.
        workers: Processes; by default one a core.
        progress: Is told bytes done and bytes in all.

    Returns:
        The faults, in the order of the shards; empty where all is well. Where there are many of a kind the first are
        named, and one fault stands for the number of the others.
    """
    survey = survey_folder(folder, decode=decode)
    faults = FaultList()
    faults.extend(survey.faults)
    for path in survey.orphans:
        faults.add("orphan shard", path.name, "is not in the index")
    with ShardKeys() as keys:
        for findings in check_shards(survey.tasks, workers, progress):
            faults.extend(findings.faults)
            keys.add_shard(findings.path, findings.digests)
        faults.extend(repeated_keys(keys))
    return faults.listed(folder.name)


def survey_folder(folder: Path, *, decode: bool) -> Survey:
    """Reads a folder's index and plans how to look through its shards."""
    try:
        index = read_shard_list(folder)
    except UserError as error:
        tasks = [ShardTask(path=path, checks=Checks(decode=decode, wanted=frozenset())) for path in tars_of(folder)]
        return Survey(folder=folder, index=None, tasks=tasks, faults=[_fault("index", folder.name, str(error))])
    faults = list(_check_index(index))
    rows = None
    try:
        _, rows = load_index(folder)
    except UserError as error:
        faults.append(_fault("samples.npy", folder.name, str(error)))
    tasks = list(_tasks(folder, index, rows, decode))
    listed = {task.path.name for task in tasks}
    orphans = [path for path in tars_of(folder) if path.name not in listed]
    return Survey(folder=folder, index=index, tasks=tasks, orphans=orphans, faults=faults)


def _tasks(folder: Path, index: dict[str, Any], rows: Rows | None, decode: bool) -> Iterator[ShardTask]:
    checks = Checks(decode=decode, wanted=wanted_members(index))
    start, seen = 0, set[str]()
    for shard in index["shardlist"]:
        stop = start + shard["nsamples"]
        if _is_plain(shard["url"]) and shard["url"] not in seen:
            seen.add(shard["url"])
            yield ShardTask(
                path=folder / shard["url"],
                checks=checks,
                filesize=shard["filesize"],
                sha256=shard.get("sha256"),
                samples_sha256=shard.get("samples_sha256"),
                samples=shard["nsamples"],
                rows=None if rows is None else rows[start:stop],
            )
        start = stop


def wanted_members(index: dict[str, Any]) -> frozenset[str]:
    """The text members that every sample of a folder must have: all, where the index does not say."""
    stated = index.get(MEMBERS)
    return TEXT_MEMBERS & {str(name) for name in stated} if isinstance(stated, list) else TEXT_MEMBERS


def _check_index(index: dict[str, Any]) -> Iterator[Fault]:
    for url, count in Counter(shard["url"] for shard in index["shardlist"]).items():
        if not _is_plain(url):
            yield _fault("index", INDEX, f"names the shard {url!r}, which is no file of this folder")
        if count > 1:
            yield _fault("index", INDEX, f"names the shard {url!r} {count} times")
    account, total = index["account"], sum(shard["nsamples"] for shard in index["shardlist"])
    skipped = skipped_counts(account)
    if account.get("written") != total:
        yield _fault("count", INDEX, f"its account says {account.get('written')} samples, its shards have {total}")
    elif skipped is None:
        yield _fault("count", INDEX, "its account does not count what was skipped by reason")
    elif account.get("asked") != total + skipped.total():
        yield _fault("count", INDEX, f"its account says {account.get('asked')} asked, not written + skipped")


def _is_plain(url: str) -> bool:
    """Whether a shard's name is that of a file in the folder, and neither a path nor a command."""
    return url == Path(url).name and ":" not in url and url.isprintable()


def repeated_keys(keys: ShardKeys) -> Iterator[Fault]:
    """One fault for each sample whose key another one had before, those named first that are named at all."""
    named = 0
    for positions in keys.repeated():
        first, number = keys.place(int(positions[0]))
        for position in positions[1:]:
            where, what = "", ""
            if named < NAMED:
                path = keys.place(int(position))[0]
                where, what = f"{path.name}:{key_at(first, number)}", f"the key occurs in {first.name} too"
            named += 1
            yield _fault("duplicate key", where, what)


def _fault(kind: FaultKind, where: str, what: str) -> Fault:
    return Fault(kind=kind, where=where, what=what)
