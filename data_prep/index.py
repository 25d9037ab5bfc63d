"""The index of a shard folder: `index.json` (a wids index and checksums), `samples.npy` (byte offsets)."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.targets import LocalTarget, Target, write_json_to

COLUMNS = ("begin", "end", "captions", "statements", "crc32")
"""Of `samples.npy`; the last is `checksums.of_members`."""
Row = tuple[int, int, int, int, int]
INDEX = "index.json"
SAMPLES = "samples.npy"
COUNTS = {"captions": ("captions", "captioned"), "statements": ("statements", "stated")}
"""By column: the keys of a shard in the index for the sum of its rows, and for how many rows are not 0."""


def indexed_splits(data: Path) -> list[Path]:
    """The folders with an index, of one data set (`data/SPLIT`) and of several (`data/SET/SPLIT`), in order.

    Hidden ones are left out: what a killed process had begun to write or to remove.
    """
    # Not by rglob, which does not look into links: shards that were there are linked.
    found = (path.parent for pattern in ("*", "*/*") for path in data.glob(f"{pattern}/{INDEX}"))
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(data).parts))


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One finished shard; `rows` has a row of `COLUMNS` for each sample, in order."""

    url: str
    filesize: int
    sha256: str
    rows: Sequence[Sequence[int]] | NDArray[np.int64]


def write_index(
    folder: Path,
    shards: Sequence[ShardEntry],
    *,
    name: str,
    account: Mapping[str, Any],
    fingerprint: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes `samples.npy`, then `index.json`, whose presence says that the folder is complete.

    Args:
        folder: Where the shards lie.
        shards: In their order.
        name: Of the data.
        account: Samples asked and written, and why the others are missing.
        fingerprint: Stands for everything that the bytes depend on, where we wrote them.
        more: Further keys; those above win.

    Raises:
        UserError: where the disk is full.
    """
    entries = list[dict[str, Any]]()

    def blocks() -> Iterator[NDArray[np.int64]]:
        for shard in shards:
            rows = np.array(shard.rows, dtype=np.int64).reshape(-1, len(COLUMNS))
            entries.append(_listed(shard.url, len(rows), shard.filesize, shard.sha256) | text_counts(rows))
            yield rows

    target = LocalTarget(folder)
    write_samples(target, blocks())
    write_shardlist(target, entries, name=name, account=account, fingerprint=fingerprint, more=more)


def _listed(url: str, samples: int, filesize: int, sha256: str) -> dict[str, Any]:
    return {"url": url, "nsamples": samples, "filesize": filesize, "sha256": sha256}


def text_counts(rows: NDArray[np.int64]) -> dict[str, int]:
    """What the index says of a shard's texts, so that nobody must read all of `samples.npy` to know: see `COUNTS`."""
    counts = {}
    for column, (total, having) in COUNTS.items():
        values = rows[:, COLUMNS.index(column)]
        counts[total], counts[having] = int(values.sum()), int(np.count_nonzero(values))
    return counts


def rows_sha256(rows: NDArray[np.int64]) -> str:
    """What the index has of a shard that has no SHA-256 of its bytes: the one of its rows in `samples.npy`.

    With the samples' checksums in them they stand for every name and byte of every member, and for all places.
    """
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()


def write_samples(target: Target, rows: Iterable[NDArray[np.int64]]) -> None:
    """Writes `samples.npy` block by block, for all rows of a large split would not fit into memory.

    Args:
        target: The folder of the split.
        rows: Blocks of int64 (samples, 5), in the order of the shards.

    Raises:
        UserError: where the disk is full.
    """
    total = 0
    with target.write(SAMPLES) as file:
        file.write(_npy_header(total))
        for block in rows:
            total += len(block)
            file.write(np.ascontiguousarray(block, dtype="<i8").tobytes())
        file.seek(0)
        file.write(_npy_header(total))  # numpy pads it, so that any number of rows takes the same space


def _npy_header(rows: int) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (rows, len(COLUMNS))}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def samples_size(rows: int) -> int:
    """The bytes of a `samples.npy` with so many rows."""
    return len(_npy_header(rows)) + rows * len(COLUMNS) * 8


def write_shardlist(
    target: Target,
    shardlist: Sequence[Mapping[str, Any]],
    *,
    name: str,
    account: Mapping[str, Any],
    fingerprint: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes `index.json`, whose presence says that the folder is complete.

    Raises:
        UserError: where the disk is full.
    """
    index: dict[str, Any] = {
        **(more or {}),
        "wids_version": 1,
        "name": name,
        "shardlist": list(shardlist),
        "samples": SAMPLES,
        "columns": list(COLUMNS),
        "account": dict(account),
    }
    if fingerprint is not None:
        index["fingerprint"] = fingerprint
    write_json_to(target, INDEX, index)


def load_index(folder: Path) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Reads a folder's index.

    Returns:
        The parsed `index.json`, and the rows of `samples.npy`: int64 (samples, 5), memory-mapped.

    Raises:
        UserError: where the folder has no index, or one that does not fit together.
    """
    index = read_shard_list(folder)
    try:
        rows = np.load(folder / SAMPLES, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise _incomplete(folder, SAMPLES) from error
    except (ValueError, EOFError, SyntaxError, TokenError, OverflowError, TypeError) as error:  # a header gone bad
        raise UserError(
            f"{folder} has a broken index ({error}); make it again with `trimline index {folder}`"
        ) from error
    if index.get("columns") != list(COLUMNS):
        raise UserError(
            f"{folder / INDEX} is of another version: its columns are not {', '.join(COLUMNS)}; "
            f"make it again with `trimline index {folder}`"
        )
    total = sum(shard["nsamples"] for shard in index["shardlist"])
    if rows.dtype != np.int64 or rows.shape != (total, len(COLUMNS)):
        raise UserError(
            f"{folder / SAMPLES} holds {rows.dtype} {rows.shape}, but {INDEX} wants int64 "
            f"{(total, len(COLUMNS))}; make the index again with `trimline index {folder}`"
        )
    return index, rows


def read_shard_list(folder: Path) -> dict[str, Any]:
    """Reads `index.json` alone.

    Raises:
        UserError: where there is none, or it is not as `write_index` writes it.
    """
    try:
        data = (folder / INDEX).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _incomplete(folder, INDEX) from error
    return parse_index(data, str(folder))


def parse_index(data: bytes, folder: str) -> dict[str, Any]:
    """Parses the content of an `index.json`.

    Args:
        data: The file.
        folder: Where it lies, for messages.

    Raises:
        UserError: it is not as `write_index` writes it.
    """
    try:
        index = json.loads(data)
    except RecursionError as error:
        raise UserError(f"{folder}/{INDEX} does not hold valid JSON (nested too deep); delete it") from error
    except ValueError as error:
        raise UserError(f"{folder}/{INDEX} does not hold valid JSON ({error}); delete it and run again") from error
    if not (isinstance(index, dict) and isinstance(index.get("account"), dict) and _are_shards(index.get("shardlist"))):
        raise UserError(
            f"{folder}/{INDEX} is not an index as Trimline writes it (shardlist of url, nsamples, filesize; account); "
            f"make it again with `trimline index {folder}`"
        )
    return index


def skipped_counts(account: Mapping[str, Any]) -> Counter[str] | None:
    """How many samples an account says are missing, by reason; None where it does not say so in whole numbers."""
    skipped = account.get("skipped", {})
    if not isinstance(skipped, dict) or not all(type(count) is int for count in skipped.values()):
        return None
    return Counter[str](skipped)


def _are_shards(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(shard, dict)
        and isinstance(shard.get("url"), str)
        and all(isinstance(shard.get(key), int) and 0 <= shard[key] < 1 << 62 for key in ("nsamples", "filesize"))
        for shard in value
    )


def _incomplete(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder} has no {name}: it is incomplete or not a shard folder; "
        "run the command that writes it again, which goes on where it stopped"
    )
