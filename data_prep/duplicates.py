"""Finds pictures that are byte for byte the same, before any shard is written.

A pass of its own reads the samples in the order of the source and keeps only their checksums, in side files. So
the first of each kind stays, whatever the order and the number of processes that write, and no shard has to be
written twice.
"""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.clean import Cleaner, Dropped
from data_prep.records import Record, Skipped, Split
from data_prep.targets import Target

CHUNK = 10_000  # samples that one piece of work hashes
FOLDER = ".checksums"
_BITS = "duplicates"
_ENTRY = np.dtype([("position", "<i8"), ("sha256", "<u8", (4,))])
_AT_ONCE = 2_000_000  # checksums compared in memory together, 40 bytes each


@dataclass(frozen=True, kw_only=True)
class HashJob:
    """Writes the checksums of pieces of a split, each into a file of its own; returns how many samples it read."""

    split: Split
    target: Target
    fingerprint: str
    cleaner: Cleaner

    def __call__(self, number: int) -> int:
        """Hashes chunk `number`."""
        start, stop = number * CHUNK, min((number + 1) * CHUNK, len(self.split))
        entries = []
        for position, record in zip(range(start, stop), self.split.records(start, stop), strict=True):
            digest = None if isinstance(record, Skipped) else self._digest(record)
            if digest is not None:
                entries.append((position, np.frombuffer(digest, dtype="<u8")))
        data = np.array(entries, dtype=_ENTRY).tobytes()
        with self.target.write(self._name(number), durable=False) as file:
            file.write(self.fingerprint.encode() + hashlib.sha256(data).digest() + data)
        return stop - start

    def count(self) -> int:
        """How many chunks there are."""
        return math.ceil(len(self.split) / CHUNK)

    def missing(self) -> list[int]:
        """The chunks that no earlier call has hashed."""
        there = self.target.sizes(FOLDER)
        numbers = [n for n in range(self.count()) if self._name(n).rpartition("/")[2] in there]
        files = self.target.read_many(self._name(n) for n in numbers)
        done = {n for n, data in zip(numbers, files, strict=True) if self._entries(data) is not None}
        return [n for n in range(self.count()) if n not in done]

    def decide(self) -> None:
        """Finds the duplicates among all checksums, and keeps one bit for each position.

        Memory stays bounded: the checksums are compared in as many groups as it takes.
        """
        bits = np.zeros(-(-len(self.split) // 8), dtype=np.uint8)
        groups = math.ceil(len(self.split) / _AT_ONCE)
        for group in range(groups):
            later = later_ones(np.concatenate([*self._of_group(group, groups), np.empty(0, _ENTRY)]))
            np.bitwise_or.at(bits, later >> 3, np.left_shift(1, later & 7).astype(np.uint8))
        with self.target.write(f"{FOLDER}/{_BITS}") as file:
            file.write(bits.tobytes())

    def _of_group(self, group: int, groups: int) -> list[NDArray[np.void]]:
        chosen = []
        for data in self.target.read_many(self._name(n) for n in range(self.count())):
            entries = self._entries(data)
            if entries is None:
                raise OSError(f"{self.target}/{FOLDER} changed while it was used")
            chosen.append(entries[entries["sha256"][:, 0] % groups == group])
        return chosen

    def _digest(self, record: Record) -> bytes | None:
        """The checksum of a sample that competes: one that is left out anyway must not displace another."""
        try:
            self.cleaner.screen(record, Counter())
        except Dropped:
            return None
        digest = hashlib.sha256()
        for data in record.images.values():
            digest.update(data)
        return digest.digest()

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{number:05d}"

    def _entries(self, data: bytes) -> NDArray[np.void] | None:
        """The entries of a file, or None where it is of another job or damaged."""
        mark = len(self.fingerprint)
        body = data[mark + 32 :]
        if data[:mark] != self.fingerprint.encode() or data[mark : mark + 32] != hashlib.sha256(body).digest():
            return None
        return np.frombuffer(body, dtype=_ENTRY)


def later_ones(entries: NDArray[np.void]) -> NDArray[np.int64]:
    """The positions of all entries but the first of each checksum; entries come in the order of their positions."""
    words = entries["sha256"]
    order = np.lexsort(words.T)  # stable: among equals the first position comes first
    same = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    positions: NDArray[np.int64] = entries["position"][order[1:][same]]
    return positions


def read_duplicates(target: Target) -> NDArray[np.uint8]:
    """The bits that `HashJob.decide` wrote."""
    return np.frombuffer(target.read(f"{FOLDER}/{_BITS}"), dtype=np.uint8)


def is_duplicate(bits: NDArray[np.uint8], position: int) -> bool:
    """Whether an earlier sample has the same picture."""
    return bool(bits[position >> 3] >> (position & 7) & 1)
