"""What is asked for: a list's good lines in a file that is read at any place, and which of them share a URL."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.download.lists import Entry, ListSpec, read_list
from data_prep.files import atomic_dir, read_json, write_json

BATCH_ROWS = 1000  # read at a time, whatever one of them is wanted
_SCHEMA = pa.schema([("line", pa.int64()), ("url", pa.string()), ("captions", pa.list_(pa.string()))])


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A picture that is asked for.

    Attributes:
        line: The first line of the list that asks for it, counted from 0.
        url: Its URL as the list has it.
        captions: What all lines with this URL say of it, each text once.
    """

    line: int
    url: str
    captions: tuple[str, ...]


class Asked:
    """The pictures of a list by number, in the list's order; read from the folder that `write_asked` made."""

    def __init__(self, folder: Path) -> None:
        about = read_json(folder / "about.json")
        self.lines: int = about["lines"]
        self.faults: dict[str, int] = about["faults"]
        self.repeats: int = about["repeats"]
        self._rows = pa.ipc.open_file(pa.OSFile(str(folder / "lines.arrow")))
        self._members, self._starts = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("members", "starts")
        )
        self._opened, self._columns = -1, list[Any]()

    def __len__(self) -> int:
        """Pictures with a URL of their own."""
        return len(self._starts) - 1

    def wish(self, number: int) -> Wish:
        """The picture with this number."""
        rows = [self._row(int(row)) for row in self._members[self._starts[number] : self._starts[number + 1]]]
        captions = dict.fromkeys(caption for _, _, texts in rows for caption in texts)
        return Wish(line=rows[0][0], url=rows[0][1], captions=tuple(captions))

    def urls(self, numbers: NDArray[np.int64]) -> Iterator[list[str]]:
        """The URLs of these pictures, in pieces of `BATCH_ROWS`."""
        for start in range(0, len(numbers), BATCH_ROWS):
            rows = self._members[self._starts[numbers[start : start + BATCH_ROWS]]]
            yield [self._row(int(row))[1] for row in rows]

    def _row(self, row: int) -> tuple[int, str, list[str]]:
        number, place = divmod(row, BATCH_ROWS)
        if self._opened != number:
            self._columns, self._opened = self._rows.get_batch(number).columns, number
        line, url, captions = (column[place].as_py() for column in self._columns)
        return line, url, captions


def write_asked(spec: ListSpec, folder: Path, progress: Callable[[int], None]) -> None:
    """Reads a whole list into a folder that is whole or absent.

    Lines with the same URL become one picture with the captions of all of them.

    Args:
        spec: The list.
        folder: The folder to make.
        progress: Called now and then with the lines that were read.

    Raises:
        UserError: the list cannot be read, or the disk is full.
    """
    faults, hashes = Counter[str](), list[NDArray[np.uint64]]()
    with atomic_dir(folder) as aside:
        with pa.OSFile(str(aside / "lines.arrow"), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            for batch, lines in _batches(spec, faults):
                writer.write_batch(batch)
                hashes.append(np.array([_hash(url) for url in batch["url"].to_pylist()], dtype=np.uint64))
                if len(hashes) % 100 == 1:
                    progress(lines)
        members, starts = _group(np.concatenate(hashes) if hashes else np.zeros(0, np.uint64))
        np.save(aside / "members.npy", members, allow_pickle=False)
        np.save(aside / "starts.npy", starts, allow_pickle=False)
        good = len(members)
        about = {"lines": good + faults.total(), "faults": dict(sorted(faults.items()))}
        write_json(aside / "about.json", about | {"repeats": good - (len(starts) - 1)})


def _batches(spec: ListSpec, faults: Counter[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Record batches of `BATCH_ROWS` good lines each (fewer in the last), and the lines read so far."""
    rows: list[tuple[int, Entry]] = []
    line = -1
    for line, entry in enumerate(read_list(spec)):
        if entry.fault is not None:
            faults[entry.fault] += 1
            continue
        rows.append((line, entry))
        if len(rows) == BATCH_ROWS:
            yield _batch_of(rows), line + 1
            rows = []
    if rows:
        yield _batch_of(rows), line + 1


def _batch_of(rows: list[tuple[int, Entry]]) -> pa.RecordBatch:
    columns = [line for line, _ in rows], [entry.url for _, entry in rows], [list(entry.captions) for _, entry in rows]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _hash(url: str) -> int:
    # 128 bits would be safe without a thought; with 64, two of 12 million URLs meet with a chance of 4 in a million.
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest(), "little")


def _group(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups equal hashes, groups in the order of their first rows.

    Returns:
        The rows, group by group, each group ascending; and where each group starts, with the total at the end.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    heads = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[heads, len(order)])
    by_first = np.argsort(order[heads], kind="stable")
    starts = np.r_[0, np.cumsum(sizes[by_first])].astype(np.int64)
    shift = np.repeat(heads[by_first] - starts[:-1], sizes[by_first])
    return order[np.arange(len(order)) + shift].astype(np.int64), starts
