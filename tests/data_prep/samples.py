"""Small splits for the tests of the writer, and a way to compare folders."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data_prep.records import Record, Skipped


def picture(number: int, side: int = 8, extension: str = ".png") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3)).astype(np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


@dataclasses.dataclass(frozen=True)
class Plain:
    """`size` noisy pictures with two captions each; what `bad` names is broken or missing."""

    size: int = 25
    bad: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    sides: tuple[int, ...] = (8,)

    def __len__(self) -> int:
        return self.size

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        for number in range(start, stop):
            key = f"k{number:04d}"
            if number in self.missing:
                yield Skipped(key=key, reason="picture missing")
                continue
            data = picture(number, self.sides[number % len(self.sides)])
            yield Record(
                key=key,
                source="plain",
                id=str(number),
                images={"": data[: len(data) // 2] if number in self.bad else data},
                captions=(f"picture {number}", f"number {number}"),
                statements=({"text": f"this is {number}", "label": True},),
                fields={"number": number},
            )


@dataclasses.dataclass(frozen=True)
class Forever:
    """Three samples that never come; each process that waits for one says so in `folder`."""

    folder: str

    def __len__(self) -> int:
        return 3

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        (Path(self.folder) / f"pid-{os.getpid()}").touch()
        time.sleep(600)
        yield Skipped(key="k", reason="never")


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
