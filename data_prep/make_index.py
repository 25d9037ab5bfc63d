"""Makes the index of shards that came from elsewhere, and of shards that were mended."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.index import COLUMNS, ShardEntry, write_index
from data_prep.keys import ShardKeys, key_at
from data_prep.parts import PARTS
from data_prep.sample_check import TEXT_MEMBERS, Checks
from data_prep.shard_check import Progress, ShardFindings, ShardTask, check_shards

MEMBERS = "members"
"""Key of the index for the text members that each sample should have, where these are not all."""

_DOWNLOAD_REASONS = {"failed_to_download": "not downloaded", "failed_to_resize": "not resized"}
_FATAL = ("truncated tar", "broken tar", "unsafe member")


class RowFile:
    """Rows of samples.npy that lie in a file and not in memory; a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by __exit__
        self._shards: list[tuple[str, int, str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, url: str, filesize: int, sha256: str, rows: ArrayLike) -> None:
        """Adds a shard with its rows."""
        data = np.asarray(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        self._file.write(data.tobytes())
        self._shards.append((url, filesize, sha256, len(data)))

    def entries(self) -> list[ShardEntry]:
        """The shards; their rows are read from the file as they are needed, while it is open."""
        self._file.flush()
        total = sum(count for *_, count in self._shards)
        everything: NDArray[np.int64] = np.empty((0, len(COLUMNS)), dtype=np.int64)
        if total:
            everything = np.memmap(self._file, dtype=np.int64, mode="r", shape=(total, len(COLUMNS)))
        ends = np.cumsum([count for *_, count in self._shards])
        return [
            ShardEntry(url=url, filesize=filesize, sha256=sha256, rows=everything[end - count : end])
            for (url, filesize, sha256, count), end in zip(self._shards, ends, strict=True)
        ]


def refuse_unfinished(folder: Path) -> None:
    """Refuses a folder that a job has begun and not finished: what is there is not what was asked for.

    Raises:
        UserError: it is one.
    """
    if (folder / PARTS).exists():
        raise UserError(f"{folder} is not finished; run the command that writes it again, which goes on where it was")


def tars_of(folder: Path) -> list[Path]:
    """The tar files in a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def index_folder(folder: Path, workers: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Makes the index of a folder of tars, ours or another tool's (img2dataset's, for example).

    Args:
        folder: Where the `*.tar` lie; they are taken in the order of their names. Other files are not looked at.
        workers: Processes; by default one a core.
        progress: Is told bytes done and bytes in all.

    Returns:
        The account: samples asked and written, and counts of what was skipped.

    Raises:
        UserError: where there is no tar, or some that cannot be used, or the folder is still being written; nothing is
            written then.
    """
    refuse_unfinished(folder)
    tars = tars_of(folder)
    if not tars:
        raise UserError(f"{folder} holds no .tar file; give the folder that holds the shards")
    checks = Checks(pictures=False, decode=False, wanted=frozenset())
    skipped, texts, fatal = Counter[str](), Counter[str](), list[str]()
    with RowFile() as rows, ShardKeys() as keys:
        for findings in check_shards([ShardTask(path=path, checks=checks) for path in tars], workers, progress):
            rows.add(findings.path.name, findings.filesize, findings.sha256, findings.rows)
            keys.add_shard(findings.path, findings.digests)
            skipped.update(findings.unusable)
            texts.update(findings.texts)
            fatal += _first_fatal(findings)
        skipped.update(_not_downloaded(tars))
        _refuse_damaged(folder, fatal, len(tars))
        _refuse_repeated(folder, keys)
        entries = rows.entries()
        written = sum(len(entry.rows) for entry in entries)
        if not written:
            raise UserError(
                f"{folder}: no sample of its {len(tars)} shards can be used: {dict(skipped) or 'all empty'}"
            )
        account = {
            "asked": written + skipped.total(),
            "written": written,
            "skipped": dict(sorted(skipped.items())),
        }
        write_index(folder, entries, name=folder.name, account=account, more={MEMBERS: usual(texts, len(keys))})
    return account


def _not_downloaded(tars: Sequence[Path]) -> Counter[str]:
    """What img2dataset says of the pictures that are in no shard, in a file beside each."""
    missing = Counter[str]()
    for path in tars:
        told = path.with_name(f"{path.stem}_stats.json")
        values = read_json(told) if told.is_file() else None
        for key, reason in _DOWNLOAD_REASONS.items():
            count = values.get(key) if isinstance(values, dict) else None
            if isinstance(count, int) and count > 0:
                missing[reason] += count
    return missing


def usual(texts: Mapping[str, int], samples: int) -> list[str]:
    """The text members that more than half of the samples have: the others lack them."""
    return [name for name in sorted(TEXT_MEMBERS) if 2 * texts.get(name, 0) > samples]


def _first_fatal(findings: ShardFindings) -> list[str]:
    """What makes a shard unfit for any reader, if anything does: in one line."""
    fatal = [fault for fault in findings.faults if fault.kind in _FATAL]
    return [f"{findings.path}: {fatal[0].what}"] if fatal else []


def _refuse_damaged(folder: Path, fatal: Sequence[str], shards: int) -> None:
    if fatal:
        raise UserError(
            f"{fatal[0]} ({len(fatal)} of {shards} shards are damaged); fetch these shards again, or keep what is good "
            f"of them with `trimline verify {folder} --repair`, which makes the index too"
        )


def _refuse_repeated(folder: Path, keys: ShardKeys) -> None:
    count, first = 0, ""
    for positions in keys.repeated():
        count += len(positions) - 1
        if not first:
            (one, number), (other, _) = (keys.place(int(position)) for position in positions[:2])
            first = f"key {key_at(one, number)!r} occurs twice in the folder, in {one.name} and {other.name}"
    if count:
        raise UserError(
            f"{folder}: {first} ({count} such keys); put shards of different origin into folders of their own and mix "
            f"them, or drop the later ones with `trimline verify {folder} --repair`"
        )
