"""Mends a shard folder: keeps what is good, drops what is not, and says what was lost."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.faults import NAMED, Fault, FaultKind, FaultList
from data_prep.files import atomic_file, remove_asides
from data_prep.index import COLUMNS, ShardEntry, skipped_counts, write_index
from data_prep.keys import ShardKeys
from data_prep.make_index import MEMBERS, RowFile, refuse_unfinished, usual
from data_prep.parallel import cores, map_in_order
from data_prep.rewrite import RewriteTask, Rewritten, rewrite_shard
from data_prep.sample_check import UNKNOWN, Checks
from data_prep.shard_check import TEXT_BITS, Progress, ShardFindings, check_shards, is_shard
from data_prep.verify import Survey, repeated_keys, survey_folder, wanted_members

LOST = "lost.jsonl"
SET_ASIDE = ".orphan"
_NO_ROWS = np.empty((0, len(COLUMNS)), dtype=np.int64)  # a slice of all rows would keep them alive


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Samples that are no longer there: one with its key, or a number of them whose keys nobody can read."""

    shard: str
    reason: FaultKind
    what: str
    key: str | None = None
    samples: int = 1


@dataclass(kw_only=True)
class Repair:
    """What was done to a folder.

    Attributes:
        faults: What `verify_folder` finds.
        kept: Samples that the folder has now.
        lost: Samples that it no longer has, by reason.
        named: The first of them; all are in the folder's `lost.jsonl`.
        rewritten: Shards that were written anew.
        removed: Shards without a good sample, which were deleted.
        set_aside: Tars that the index did not name, or none of whose good samples it knows, which were renamed to
            `NAME.tar.orphan`.
        renamed: Tars that were given the names which the index has for them.
    """

    faults: list[Fault] = field(default_factory=list)
    kept: int = 0
    lost: Counter[FaultKind] = field(default_factory=Counter)
    named: list[Lost] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def repair_folder(
    folder: Path, *, decode: bool = True, workers: int | None = None, progress: Progress | None = None
) -> Repair:
    """Verifies a folder and mends every fault; where there is none, nothing is touched.

    Damaged shards are written anew from their good samples, each atomically; then the index. A repair that was stopped
    is finished by another one. Tars that the index does not name are not trusted: they are set aside, or renamed where
    they are a missing shard.

    Args:
        folder: A split folder.
        decode: Whether pictures are decoded; without it broken ones that have no checksum stay.
        workers: Processes; by default one a core.
        progress: Is told bytes done and bytes in all.

    Raises:
        UserError: where nothing in the folder is good, it is still being written or changes meanwhile, or the disk is
            full.
    """
    refuse_unfinished(folder)
    repair, faults = Repair(), FaultList()
    survey = _name_again(survey_folder(folder, decode=decode), repair, faults, decode)
    faults.extend(survey.faults)
    for path in survey.orphans:
        faults.add("orphan shard", path.name, "is not in the index")
    with RowFile() as rows, ShardKeys() as keys:
        look = _Look(survey, rows, keys)
        for findings in check_shards(survey.tasks, workers, progress):
            faults.extend(findings.faults)
            look.add(findings)
        faults.extend(repeated_keys(keys))
        repair.faults = faults.listed(folder.name)
        if repair.faults:
            _mend(look, repair, decode, workers)
    return repair


def _name_again(survey: Survey, repair: Repair, faults: FaultList, decode: bool) -> Survey:
    """Gives missing shards that lie there under another name their own again."""
    orphans = {path: path.stat().st_size for path in survey.orphans}
    for task in survey.tasks:
        if task.path.exists():
            continue
        same = [path for path, size in orphans.items() if size == task.filesize and is_shard(task, path)]
        if same:
            faults.add("missing shard", task.path.name, f"is missing, but lies there as {same[0].name}")
            same[0].rename(task.path)
            repair.renamed[same[0].name] = task.path.name
            del orphans[same[0]]
    return survey_folder(survey.folder, decode=decode) if repair.renamed else survey


class _Look:
    """What was found in all shards: their rows and keys in files, their samples as a byte each."""

    def __init__(self, survey: Survey, rows: RowFile, keys: ShardKeys) -> None:
        self.survey = survey
        self.rows, self.keys = rows, keys
        self.shards: list[ShardFindings] = []
        self._good = bytearray()
        self._texts = Counter[str]()

    def add(self, findings: ShardFindings) -> None:
        """Adds a shard; what may be large is not kept in memory."""
        self.rows.add(findings.path.name, findings.filesize, findings.sha256, findings.rows)
        self.keys.add_shard(findings.path, findings.digests)
        self._good += findings.good
        self._texts.update(findings.texts)
        self.shards.append(replace(findings, faults=[], rows=_NO_ROWS, digests=b"", good=b""))

    @property
    def wanted(self) -> frozenset[str]:
        """The text members that each sample must have."""
        index = self.survey.index
        return frozenset(usual(self._texts, len(self.keys))) if index is None else wanted_members(index)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Whether each sample is one to keep, the text members that it must have included; shape (samples,)."""
        needed = 1 + sum(TEXT_BITS[name] for name in self.wanted)
        return np.frombuffer(self._good, dtype=np.uint8) & needed == needed

    def damaged(self, decode: bool) -> dict[Path, RewriteTask]:
        """The shards that must be written anew."""
        checks, drops = Checks(decode=decode, wanted=self.wanted), self._repeated()
        tasks = {}
        surveyed = {task.path: task for task in self.survey.tasks}
        for shard in self.shards:
            drop = drops.get(shard.path, frozenset())
            lacking = any(shard.texts[name] < shard.samples for name in checks.wanted)
            if shard.there and (shard.damaged or drop or lacking):
                rows = surveyed[shard.path].suspects(shard.intact)
                tasks[shard.path] = RewriteTask(
                    path=shard.path, checks=checks, sha256=shard.sha256, drop=drop, rows=rows
                )
        return tasks

    def _repeated(self) -> dict[Path, frozenset[int]]:
        """The numbers of good samples whose key an earlier good one has, by shard."""
        drops: dict[Path, set[int]] = {}
        good = self.good
        for positions in self.keys.repeated():
            for position in positions[good[positions]][1:]:
                path, number = self.keys.place(int(position))
                drops.setdefault(path, set()).add(number)
        return {path: frozenset(numbers) for path, numbers in drops.items()}


def _mend(look: _Look, repair: Repair, decode: bool, workers: int | None) -> None:
    """Writes what is damaged anew, then the list of what was lost, then the index."""
    folder = look.survey.folder
    if not look.good.any():
        raise UserError(
            f"{folder}: no sample of it is good, so nothing was touched; write or fetch it again, or "
            "run `trimline index` where other shards were put there on purpose"
        )
    remove_asides(folder)  # of a repair that was killed
    for path in look.survey.orphans:
        _set_aside(path, repair)
    with RowFile() as rows:
        with atomic_file(folder / LOST) as file:
            if (folder / LOST).exists():
                file.write((folder / LOST).read_bytes())
            replaced = _write_shards(look, look.damaged(decode), rows, file, repair, workers)
        if not (folder / LOST).stat().st_size:
            (folder / LOST).unlink()
        entries = rows.entries()
        repair.kept = sum(len(entry.rows) for entry in entries)
        for name in repair.removed:
            (folder / name).unlink()
        for path in replaced:
            _set_aside(path, repair)
        _write_index(look, repair, entries)


def _set_aside(path: Path, repair: Repair) -> None:
    path.rename(path.with_name(path.name + SET_ASIDE))
    repair.set_aside.append(path.name)


def _write_shards(
    look: _Look, tasks: dict[Path, RewriteTask], rows: RowFile, file: BinaryIO, repair: Repair, workers: int | None
) -> list[Path]:
    """Writes the damaged shards anew; gathers the rows of all shards, and what was lost.

    Returns:
        Shards without a good sample that have some which would be good if the index knew them: other ones, it seems.
    """
    replaced = []
    anew = map_in_order(rewrite_shard, list(tasks.values()), min(workers or cores(), len(tasks)))
    stated = {task.path: task.samples or 0 for task in look.survey.tasks}
    for shard, entry in zip(look.shards, look.rows.entries(), strict=True):
        if shard.path in tasks:
            now = next(anew)
            if now.entry is None and any(what == UNKNOWN for *_, what in now.lost):
                replaced.append(shard.path)
            else:
                (repair.rewritten if now.entry else repair.removed).append(shard.path.name)
        else:
            now = Rewritten(entry=entry if shard.there else None)
        if now.entry is not None:
            rows.add(now.entry.url, now.entry.filesize, now.entry.sha256, now.entry.rows)
        for lost in _lost(shard, now, stated[shard.path]):
            _tell(lost, file, repair)
    return replaced


def _lost(shard: ShardFindings, now: Rewritten, stated: int) -> Iterator[Lost]:
    """The samples that a shard no longer has: by key, and the number of those whose keys nobody can read."""
    for key, kind, what in now.lost:
        yield Lost(shard=shard.path.name, reason=kind, what=what, key=key)
    kept = 0 if now.entry is None else len(now.entry.rows)
    unknown = stated - kept - len(now.lost)
    if unknown > 0:
        reason: FaultKind = "truncated tar" if shard.there else "missing shard"
        what = "cut off or unreadable" if shard.there else "their shard is missing"
        yield Lost(shard=shard.path.name, reason=reason, what=what, samples=unknown)


def _tell(lost: Lost, file: BinaryIO, repair: Repair) -> None:
    file.write(json.dumps(asdict(lost)).encode() + b"\n")
    repair.lost[lost.reason] += lost.samples
    if len(repair.named) < NAMED:
        repair.named.append(lost)


def _write_index(look: _Look, repair: Repair, entries: Sequence[ShardEntry]) -> None:
    """Writes the index, with what was lost in the account; other keys of the old one are kept.

    The bytes no longer follow from the fingerprint once something was left out: without it, the command that wrote the
    folder writes it again.
    """
    old = look.survey.index or {}
    account = dict(old.get("account", {}))
    skipped = skipped_counts(account) or Counter[str]()
    skipped.update({f"damaged: {reason}": count for reason, count in repair.lost.items()})
    account |= {
        "asked": repair.kept + skipped.total(),
        "written": repair.kept,
        "skipped": dict(sorted(skipped.items())),
    }
    kept = {key: value for key, value in old.items() if key != "fingerprint"}
    intact = not (repair.lost or repair.rewritten or repair.removed)
    write_index(
        look.survey.folder,
        entries,
        name=str(old.get("name", look.survey.folder.name)),
        account=account,
        fingerprint=old.get("fingerprint") if intact else None,
        more=kept | {MEMBERS: sorted(look.wanted)},
    )
