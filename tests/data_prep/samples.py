"""Small splits for the tests of the writer, and a way to compare folders."""

import dataclasses
import hashlib
import json
import os
import struct
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
class Picking(Plain):
    """Plain, but asked for several places at a time; notes what it was asked."""

    asked: list[list[int]] = dataclasses.field(default_factory=list)

    def pick(self, positions: Sequence[int]) -> Iterator[Record | Skipped]:
        self.asked.append(list(positions))
        for position in positions:
            yield from self.records(position, position + 1)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Pictures of 2 x 2 pixels, each another one, save that every hundredth is the one before."""

    size: int

    def __len__(self) -> int:
        return self.size

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        for number in range(start, stop):
            yield Record(
                key=f"{number:09d}",
                source="tiny",
                id=str(number),
                images={"": tiny_png(number - (number % 100 == 99))},
                captions=(f"picture {number}",),
            )


def tiny_png(number: int) -> bytes:
    pixels = number.to_bytes(12, "big")
    raw = zlib.compress(b"\0" + pixels[:6] + b"\0" + pixels[6:], 1)
    chunks = ((b"IHDR", b"\0\0\0\2\0\0\0\2\x08\2\0\0\0"), (b"IDAT", raw), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
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


@dataclasses.dataclass(frozen=True)
class Listed:
    """These very records."""

    items: tuple[Record | Skipped, ...]

    def __len__(self) -> int:
        return len(self.items)

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        yield from self.items[start:stop]


def samples_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The members of every sample by key and extension; JSON is read."""
    out: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member).read()
                out.setdefault(key, {})[extension] = json.loads(data) if extension == "json" else data
    return out


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
