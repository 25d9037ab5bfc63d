"""Finds keys that occur twice among any number of them, in flat memory: their hashes lie in a file."""

import hashlib
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_prep.afar import at_hand
from data_prep.tars import group_samples, walk

DIGEST_BYTES = 16
_AT_ONCE = 4 << 20
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])


def digest(key: str) -> bytes:
    """The 128-bit hash that stands for a key; two keys never share one."""
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


class KeyFile:
    """The hashes of keys in the order in which they were added; a context manager.

    Args:
        at_once: Hashes that are sorted together, 16 bytes each.
    """

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by __exit__
        self._count = 0
        self._at_once = at_once

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        """How many keys were added."""
        return self._count

    def add(self, digests: bytes) -> None:
        """Adds the hashes of some keys, one after the other."""
        self._file.write(digests)
        self._count += len(digests) // DIGEST_BYTES

    def repeated(self) -> Iterator[NDArray[np.int64]]:
        """Gives the positions of each key that was added more than once, rising; the keys in no certain order."""
        self._file.flush()
        parts = -(-self._count // self._at_once)
        for part in range(parts):
            yield from _repeated(*self._part(part, parts))

    def _part(self, part: int, parts: int) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """The hashes whose first bits belong to a part, with their positions."""
        chosen, places = [], []
        for start, chunk in self._chunks():
            inside = np.flatnonzero(chunk["high"] % np.uint64(parts) == np.uint64(part))
            chosen.append(chunk[inside])
            places.append(inside + start)
        return np.concatenate(chosen), np.concatenate(places)

    def _chunks(self) -> Iterable[tuple[int, NDArray[np.void]]]:
        self._file.seek(0)
        start = 0
        while data := self._file.read(DIGEST_BYTES << 18):
            chunk = np.frombuffer(data, dtype=_DIGEST)
            yield start, chunk
            start += len(chunk)


def _repeated(digests: NDArray[np.void], places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    order = np.lexsort((places, digests["low"], digests["high"]))
    ordered = digests[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    begins = np.flatnonzero(new)
    ends = np.append(begins[1:], len(ordered))
    for which in np.flatnonzero(ends - begins > 1):
        yield places[order[begins[which] : ends[which]]]


class ShardKeys(KeyFile):
    """The keys of shards, so that those that repeat can be told by shard and number in it."""

    def __init__(self) -> None:
        super().__init__()
        self._shards: list[Path] = []
        self._begins: list[int] = []

    def add_shard(self, path: Path, digests: bytes) -> None:
        """Adds the hashes of a shard's keys, in the order of its samples."""
        self._shards.append(path)
        self._begins.append(len(self))
        self.add(digests)

    def place(self, position: int) -> tuple[Path, int]:
        """The shard of a position that `repeated` gives, and the sample's number in that shard."""
        shard = bisect_right(self._begins, position) - 1
        return self._shards[shard], position - self._begins[shard]


def key_at(path: Path, number: int) -> str:
    """The key of a shard's sample, by its number among those that can be read."""
    with at_hand(path), open(path, "rb") as file:
        for count, (key, _) in enumerate(group_samples(walk(file, lambda damage: None))):
            if count == number:
                return key
    raise IndexError(f"{path} has no sample {number}: it changed while it was read")
