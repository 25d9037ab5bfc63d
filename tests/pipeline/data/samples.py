"""Pictures and lists of records to write small shard folders from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data_prep.records import Record
from pipeline.data.shards import ShardFolder

MakeSplit = Callable[..., Path]


def png(seed: int, height: int = 16, width: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@dataclass(frozen=True)
class Listed:
    listed: Sequence[Record]

    def __len__(self) -> int:
        return len(self.listed)

    def records(self, start: int, stop: int) -> Iterator[Record]:
        yield from self.listed[start:stop]


def spoil(folder: Path, row: int) -> None:
    """Overwrites the first bytes of a picture inside its shard."""
    shards = ShardFolder(folder)
    shard = shards.place(row).partition("#")[0]
    begin = int(shards._rows[row, 0])
    with open(folder / shard, "r+b") as file:
        file.seek(begin + 512)
        file.write(b"no picture")
