"""Brings together what belongs together in a long file, on disk, so that memory stays flat."""

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


def name_hash(name: str) -> int:
    """64 bits of a name's BLAKE2 hash: two of 10 million names are the same with a chance of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Groups:
    """Values under keys, given back key by key.

    16 bytes a value are held in memory; the values lie in a file that goes when the object is closed.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the file in `folder`, unseen by others."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._keys, self._ends = array("Q"), array("Q")
        self._end = 0

    def __enter__(self) -> "Groups":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the file."""
        self._file.close()

    def add(self, key: int | str, value: Any) -> None:
        """Keeps a JSON value under a key, which is a name or a whole number of at most 64 bits."""
        data = json.dumps(value).encode()
        self._file.write(data)
        self._end += len(data)
        self._keys.append(name_hash(key) if isinstance(key, str) else key % (1 << 64))
        self._ends.append(self._end)

    def __iter__(self) -> Iterator[list[Any]]:
        """The values of each key, in their order; keys in the order in which they first came."""
        self._file.flush()
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
        stops = np.r_[starts[1:], len(keys)]
        for group in np.argsort(order[starts], kind="stable"):
            yield [self._read(int(number)) for number in order[starts[group] : stops[group]]]

    def _read(self, number: int) -> Any:
        start = self._ends[number - 1] if number else 0
        return json.loads(os.pread(self._file.fileno(), self._ends[number] - start, start))
