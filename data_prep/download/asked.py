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
        self._firsts, self._joins = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("firsts", "joins")
        )
        self._opened, self._columns = -1, list[Any]()

    def __len__(self) -> int:
        """Pictures with a URL of their own."""
        return len(self._firsts)

    def wish(self, number: int) -> Wish:
        """The picture with this number."""
        first = self._firsts[number]
        begin, end = np.searchsorted(self._joins[0], [first, first + 1])
        rows = [self._row(int(row)) for row in (first, *self._joins[1, begin:end])]
        captions = dict.fromkeys(caption for _, _, texts in rows for caption in texts)
        return Wish(line=rows[0][0], url=rows[0][1], captions=tuple(captions))

    def urls(self, numbers: NDArray[np.int64]) -> Iterator[list[str]]:
        """The URLs of these pictures, in pieces of `BATCH_ROWS`."""
        for start in range(0, len(numbers), BATCH_ROWS):
            rows = self._firsts[numbers[start : start + BATCH_ROWS]]
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
        good = sum(map(len, hashes))
        firsts, joins = _group(hashes)
        np.save(aside / "firsts.npy", firsts, allow_pickle=False)
        np.save(aside / "joins.npy", joins, allow_pickle=False)
        about = {"lines": good + faults.total(), "faults": dict(sorted(faults.items()))}
        write_json(aside / "about.json", about | {"repeats": joins.shape[1]})


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


def _group(pieces: list[NDArray[np.uint64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds equal hashes; takes the pieces away from their list, and about 30 bytes a hash while it works.

    Returns:
        The first row with each hash, ascending; and the others, [2, rows]: above the first row with that hash, below
        the row itself, in the order of both.
    """
    hashes = np.concatenate([np.zeros(0, np.uint64), *pieces])
    pieces.clear()
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    again = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1  # places in the order, never the first of its hash
    del hashes
    # Equal hashes lie in a row: the first of them is just before the run of those that came again.
    starts_run = np.r_[True, np.diff(again) > 1][: len(again)]
    firsts_of = (again - 1)[starts_run][np.cumsum(starts_run) - 1]
    joins = np.stack([order[firsts_of], order[again]])
    is_first = np.ones(len(order), dtype=bool)
    is_first[joins[1]] = False
    return np.flatnonzero(is_first), joins[:, np.lexsort((joins[1], joins[0]))]
