"""Finds pictures by name in any number of folders, tars and zips, through an index on disk.

The index is made once, by one process; every process that reads maps it into memory, so that ten million names cost
each of them next to nothing.
"""

import functools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.grouping import name_hash
from data_prep.stores import NoPicture, Place, Store, StoreReader

Match = Literal["path", "name", "exact"]
"""path: the folders that are named on both sides must agree. name: the file name decides alone. exact: all of it."""

# Hashes are sorted, and the order says which row each belongs to: rows and names stay as they came.
_STORES, _NAMES, _ROWS, _HASHES, _ORDER = "stores.json", "names.bin", "rows.bin", "hashes.npy", "order.npy"
# Where names are the same, their rows are sorted by the folders above them, upwards: thousands of folders may each have
# a 0.jpg. Of each folder there are 32 bits of its name's hash, 0 where there is none.
_FOLDERS, _DEPTH = "folders.npy", 3
# Files of one name and equally good folders that are looked at; if these are all the same, they are taken for copies.
_MOST = 256
_ROW = np.dtype(
    [
        ("at", "<u8"),  # where the wanted name begins in names.bin; the name in the store follows it
        ("offset", "<u8"),
        ("size", "<u8"),
        ("store", "<u4"),
        ("wanted", "<u4"),  # bytes
        ("name", "<u4"),  # bytes; 0 where it is the wanted name itself
        ("packing", "<u4"),
    ]
)
_CHUNK = 1 << 14
_Maps = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64], NDArray[Any], NDArray[np.uint8]]
"""Hashes, folders [_DEPTH, names], order, rows, names."""


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _upwards(name: str) -> list[str]:
    """The last part of a name and the folders above it."""
    return [part for part in name.split("/") if part not in ("", ".")][::-1]


def _own_parts(wanted: str, store: Store) -> list[str]:
    """A file's name and the folders above it; the folder that was given counts, an archive's name not."""
    return _upwards(wanted) + ([Path(store.path).name] if store.kind == "folder" else [])


@functools.lru_cache(maxsize=1 << 12)
def _folder_hash(name: str) -> int:
    return name_hash(name) & 0xFFFFFFFF or 1


def write_index(folder: Path, stores: Sequence[Store], entries: Iterable[tuple[str, Place]], *, exact: bool) -> int:
    """Writes an index into an empty folder.

    Args:
        folder: Where it goes.
        stores: What the places refer to.
        entries: (name by which it is wanted, place) of every file.
        exact: Whether names are looked up whole (URLs) and not by their last part.

    Returns:
        How many files there are.

    Raises:
        UserError: a store cannot be listed.
    """
    hashes, folders = _write_rows(folder, stores, entries, exact=exact)
    columns: list[NDArray[Any]] = [*folders[::-1], hashes]
    order = np.lexsort(columns)
    np.save(folder / _HASHES, hashes[order], allow_pickle=False)
    np.save(folder / _FOLDERS, np.stack([level[order] for level in folders]), allow_pickle=False)
    np.save(folder / _ORDER, order.astype(np.uint64), allow_pickle=False)
    value = [{"path": store.path, "kind": store.kind} for store in stores]
    (folder / _STORES).write_text(json.dumps(value))
    return len(hashes)


def _write_rows(
    folder: Path, stores: Sequence[Store], entries: Iterable[tuple[str, Place]], *, exact: bool
) -> tuple[NDArray[np.uint64], list[NDArray[np.uint32]]]:
    """Writes names and rows as they come; returns the hashes of the names and of their folders, 20 bytes a name."""
    at, hashes, folders = 0, array("Q"), [array("I") for _ in range(_DEPTH)]
    with open(folder / _NAMES, "wb") as name_file, open(folder / _ROWS, "wb") as row_file:
        for chunk in _chunks(entries):
            table = np.zeros(len(chunk), dtype=_ROW)
            for row, (wanted, place) in enumerate(chunk):
                key, name = _bytes(wanted), b"" if place.name == wanted else _bytes(place.name)
                name_file.write(key + name)
                hashes.append(name_hash(wanted if exact else _last(wanted)))
                above = [] if exact else _own_parts(wanted, stores[place.store])[1:]
                for level, column in enumerate(folders):
                    column.append(_folder_hash(above[level]) if level < len(above) else 0)
                table[row] = (at, place.offset, place.size, place.store, len(key), len(name), place.packing)
                at += len(key) + len(name)
            row_file.write(table.tobytes())
    return np.frombuffer(hashes, dtype=np.uint64), [np.frombuffer(column, dtype=np.uint32) for column in folders]


def _chunks(entries: Iterable[tuple[str, Place]]) -> Iterator[list[tuple[str, Place]]]:
    chunk = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class Pictures:
    """Files by name; picklable, for it holds no more than where the index lies."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder that `write_index` filled."""
        self._folder = folder
        stores = [Store(**value) for value in json.loads((folder / _STORES).read_text())]
        self._reader = StoreReader(stores)
        self._open: _Maps | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is mapped into memory stays behind."""
        return self.__dict__ | {"_open": None}

    def _maps(self) -> _Maps:
        if self._open is None:
            self._open = (
                np.load(self._folder / _HASHES, mmap_mode="r", allow_pickle=False),
                np.load(self._folder / _FOLDERS, mmap_mode="r", allow_pickle=False),
                np.load(self._folder / _ORDER, mmap_mode="r", allow_pickle=False),
                _map(self._folder / _ROWS, _ROW),
                _map(self._folder / _NAMES, np.dtype(np.uint8)),
            )
        return self._open

    def read(self, names: Sequence[str], match: Match) -> bytes:
        """The bytes of a picture.

        Args:
            names: The names under which it may lie; the first that is there counts.
            match: How much of a name must agree.

        Raises:
            NoPicture: there is none, or none that can be read, or there are several and they differ.
        """
        return self._reader.read(self.find(names, match))

    def find(self, names: Sequence[str], match: Match) -> Place:
        """The place of a file, as `read` finds it.

        Raises:
            NoPicture: there is none, or there are several that differ.
        """
        elsewhere = False
        for name in names:
            for span in self._spans(name, match):
                candidates = self._candidates(name, span, exact=match == "exact")
                elsewhere = elsewhere or bool(candidates)
                fitting = [p for _, p in candidates] if match == "exact" else self._best(name, candidates, match)
                if fitting:
                    return self._only(fitting)
        raise NoPicture("picture only in another folder (see --match name)" if elsewhere else "picture missing")

    def _spans(self, name: str, match: Match) -> Iterator[range]:
        """Where in the order the files lie that may be meant; those that agree in more folders first."""
        hashes, folders, *_ = self._maps()
        found = np.uint64(name_hash(name if match == "exact" else _last(name)))
        spans = [range(int(hashes.searchsorted(found)), int(hashes.searchsorted(found, side="right")))]
        above = [] if match == "exact" else _upwards(name)[1:]
        for level, part in zip(folders, above, strict=False):
            spans.append(_within(level, spans[-1], _folder_hash(part)))
        spans = [span for span in spans if span]
        if not spans:
            return
        agreed = len(spans) - 1
        # Deeper than that only the names themselves tell them apart.
        yield spans[-1] if agreed == _DEPTH else spans[-1][:_MOST]
        for level in range(min(agreed, _DEPTH - 1), -1, -1):
            # Files that lie in no further folder agree with a longer name.
            yield _within(folders[level], spans[level], 0)[:_MOST]

    def _candidates(self, name: str, span: range, *, exact: bool) -> list[tuple[str, Place]]:
        _, _, order, rows, names = self._maps()
        wanted = name if exact else _last(name)
        out = []
        for number in span:
            row = rows[int(order[number])]
            begin, middle = int(row["at"]), int(row["at"]) + int(row["wanted"])
            key = _text(names[begin:middle])
            own = _text(names[middle : middle + int(row["name"])]) if row["name"] else key
            place = Place(int(row["store"]), own, int(row["offset"]), int(row["size"]), int(row["packing"]))
            if key == name or (not exact and _last(key) == wanted):
                out.append((key, place))
        return out

    def _best(self, name: str, candidates: list[tuple[str, Place]], match: Match) -> list[Place]:
        """The candidates whose folders agree best with the wanted ones."""
        parts = _upwards(name)
        scores = []
        for wanted, place in candidates:
            own = _own_parts(wanted, self._reader.stores[place.store])
            agreed = next((i for i, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), None)
            if agreed is None or match == "name":
                scores.append(min(len(parts), len(own)) if agreed is None else agreed)
            else:
                scores.append(0)
        top = max(scores, default=0)
        return [place for score, (_, place) in zip(scores, candidates, strict=True) if score == top and top]

    def _only(self, places: list[Place]) -> Place:
        """The first of several places that hold the same bytes.

        Raises:
            NoPicture: they differ.
        """
        if len(places) > 1:
            first = self._reader.read(places[0])
            # Stops at the first that differs: thousands may have the name.
            if any(self._reader.read(place) != first for place in places[1:]):
                raise NoPicture("several different pictures of this name")
        return places[0]


def _within(column: NDArray[np.uint32], span: range, value: int) -> range:
    """The part of a span, over which a column is sorted, that has this value."""
    part, found = column[span.start : span.stop], np.uint32(value)
    return span[int(part.searchsorted(found)) : int(part.searchsorted(found, side="right"))]


def _map(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.zeros(0, kind)


def _text(data: NDArray[np.uint8]) -> str:
    return data.tobytes().decode("utf-8", "surrogateescape")
