"""What can be wrong with a folder of shards."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "index",  # none, or one that cannot be used
    "samples.npy",  # places or counts other than those in the tars
    "missing shard",
    "orphan shard",
    "count",  # samples or bytes other than the index says
    "checksum",
    "truncated tar",
    "broken tar",
    "unsafe member",
    "missing member",
    "bad image",
    "bad json",
    "caption",
    "duplicate key",
]
NAMED = 100
"""Faults of one kind that are named one by one; of the others there is the number."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong, or the number of further ones.

    Attributes:
        kind: What sort of fault.
        where: The file, and the sample's key after a colon where one sample is meant.
        what: What is wrong with it.
        count: Faults that this one stands for.
    """

    kind: FaultKind
    where: str
    what: str
    count: int = 1

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.what}"


class FaultList:
    """Faults in the order in which they are found; those of a kind that are too many are counted only."""

    def __init__(self) -> None:
        self._named: list[Fault] = []
        self._by_kind = Counter[FaultKind]()
        self._more = Counter[FaultKind]()

    def add(self, kind: FaultKind, where: str, what: str) -> None:
        """Adds a fault."""
        self.extend([Fault(kind=kind, where=where, what=what)])

    def extend(self, faults: Iterable[Fault]) -> None:
        """Adds faults, those that stand for several among them."""
        for fault in faults:
            if fault.count > 1 or self._by_kind[fault.kind] >= NAMED:
                self._more[fault.kind] += fault.count
            else:
                self._by_kind[fault.kind] += 1
                self._named.append(fault)

    def listed(self, where: str) -> list[Fault]:
        """All of them; those that are not named are told as a number, at a place."""
        more = [
            Fault(kind=kind, where=where, what=f"{count} more of the kind: {kind}", count=count)
            for kind, count in self._more.items()
        ]
        return self._named + more


def counts(faults: Iterable[Fault]) -> dict[FaultKind, int]:
    """Faults by kind."""
    by_kind = Counter[FaultKind]()
    for fault in faults:
        by_kind[fault.kind] += fault.count
    return dict(sorted(by_kind.items()))
