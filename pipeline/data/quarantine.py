"""Which samples could not be used: a line of JSON each in the folder of the stage, written once, whatever restarts."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import disk_full, is_disk_full

if TYPE_CHECKING:
    from pipeline.data.batch import Skip  # a report reads these lists, and is made without torch

FOLDER = "quarantine"
"""In the folder of a stage."""

_LONGEST_KIND = 100

Place = tuple[str, str, int]


class Quarantine:
    """The lists of all ranks in one folder; each rank appends to its own file, and looks into those of the others."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Touches nothing until there is something to write.

        Args:
            folder: where the lists of the stage are.
            rank: of this process.
        """
        self._folder = folder
        self._rank = rank
        self._known: set[Place] = set()
        self._read: dict[str, int] = {}

    @property
    def path(self) -> Path:
        """The list of this rank."""
        return self._folder / f"rank-{self._rank}.jsonl"

    def add(self, step: int, skips: "Sequence[Skip]", sources: Sequence[str]) -> None:
        """Writes the samples that no list has yet.

        Args:
            step: global step whose batch they were meant for.
            skips: the samples.
            sources: name of each source.

        Raises:
            UserError: the disk is full.
        """
        self._look()
        lines = []
        for skip in skips:
            place = sources[skip.source], skip.shard, skip.number
            if place not in self._known:
                self._known.add(place)
                named = {"source": place[0], "shard": skip.shard, "number": skip.number, "key": skip.key}
                lines.append(json.dumps({**named, "reason": skip.reason, "step": step, "rank": self._rank}) + "\n")
        if lines:
            self._append("".join(lines).encode())

    def _look(self) -> None:
        """Reads what is new in all lists."""
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            begin = self._read.get(path.name, 0)
            if path.stat().st_size > begin:
                with path.open("rb") as file:
                    file.seek(begin)
                    data = file.read()
                whole = data.rpartition(b"\n")[0]
                self._read[path.name] = begin + len(whole) + bool(whole)
                self._known.update(_place(line) for line in _lines(whole))

    def _append(self, data: bytes) -> None:
        """One write at the end of the file; behind a line that a kill cut short, a new one is begun."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data
            while data:
                data = data[os.write(handle, data) :]
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path, error) from error
            raise
        finally:
            os.close(handle)


def read_quarantine(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all ranks, each sample once.

    Args:
        folder: where the lists of the stage are; it need not exist.
    """
    seen = set[Place]()
    for path in sorted(folder.glob("rank-*.jsonl")):
        for line in _lines(path.read_bytes().rpartition(b"\n")[0]):
            if _place(line) not in seen:
                seen.add(_place(line))
                yield line


def count_reasons(folder: Path) -> dict[str, int]:
    """How many samples of a stage could not be used, by the kind of reason, the commonest first."""
    return dict(Counter(kind_of(str(line["reason"])) for line in read_quarantine(folder)).most_common())


def kind_of(reason: str) -> str:
    """The part of a reason that many samples share: what stands before a colon."""
    return reason.partition(":")[0][:_LONGEST_KIND]


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Parsed lines; one that a kill cut short is left out."""
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        yield value


def _place(line: dict[str, Any]) -> Place:
    return line["source"], line["shard"], line["number"]
