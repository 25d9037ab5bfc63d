"""One piece of a split into shards, in a straight line: source -> clean -> members -> tar -> side record."""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.clean import Cleaner, Dropped, Picture
from data_prep.duplicates import is_duplicate, read_duplicates
from data_prep.errors import UserError
from data_prep.images import BadImage, measure_image, shrink_image
from data_prep.index import COLUMNS, Row
from data_prep.members import Original, Sample, Stored, sample_of
from data_prep.parts import PARTS, Part, Shard, Tally
from data_prep.permutation import Permutation
from data_prep.reasons import LeftOut
from data_prep.records import Record, Skipped, Split, records_at
from data_prep.targets import Target
from data_prep.tars import BLOCK

SHARD_NAME = re.compile(r"\d{5,}(-\d{4,})?\.tar")
_END = bytes(2 * BLOCK)
_QUALITY = 95
_SMALLEST_SHARD = 1 << 20
_DIGITS = 5


Checksums = Literal["sha256", "crc32"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How samples lie in shards.

    Attributes:
        shard_samples: Samples that are asked of a shard; fewer are in it where some are left out, and in the last.
        shard_bytes: Most bytes of a shard: what does not fit goes into another one. A sample that is larger has a
            shard of its own.
        max_side: Longer side of a picture in pixels; larger ones are made smaller. Without it no byte is changed.
        order: Seeds a permutation of the samples, so that each shard is a fair part of the whole; without it they
            keep the source's order.
        checksums: sha256: of every picture and of every shard, beside the CRC-32 of every sample; crc32: the latter
            alone, which takes a sixth of the time.
    """

    shard_samples: int = 1000
    shard_bytes: int | None = None
    max_side: int | None = None
    order: str | None = None
    checksums: Checksums = "sha256"

    def __post_init__(self) -> None:
        """Refuses numbers that no shards can be made of."""
        if self.shard_samples < 1:
            raise UserError(f"data.shard_samples={self.shard_samples} must be at least 1; try 1000")
        if self.shard_bytes is not None and self.shard_bytes < _SMALLEST_SHARD:
            raise UserError(f"data.shard_bytes={self.shard_bytes} must be at least {_SMALLEST_SHARD}; try 500000000")
        if self.max_side is not None and self.max_side < 1:
            raise UserError(f"data.max_side={self.max_side} must be at least 1 pixel; try 512")


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What every process needs to know to write any part of a split; called with the number of a part.

    A part is `shard_samples` samples: one shard, or several where it exceeds `shard_bytes`. So every part is written
    without knowing of any other, and its shards have the same names and bytes whoever writes them.
    """

    split: Split
    target: Target
    fingerprint: str
    layout: Layout
    cleaner: Cleaner

    def __call__(self, number: int) -> int:
        """Writes the shards of one part and then its side record, whose presence makes them trusted.

        Returns:
            How many samples were asked of this part.
        """
        tally = Tally()
        shards, keys, rows = self._write_shards(number, self._samples(number, tally))
        part = Part(
            fingerprint=self.fingerprint,
            asked=self.asked(number),
            shards=tuple(shards),
            tally=tally,
            keys=tuple(keys),
            rows=np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS)),
        )
        # Not durable: whatever a power cut leaves of it is not trusted, and the part is written again.
        with self.target.write(self.part_name(number), durable=False) as file:
            file.write(part.to_bytes())
        return part.asked

    @cached_property
    def count(self) -> int:
        """How many parts there are."""
        return math.ceil(len(self.split) / self.layout.shard_samples)

    def asked(self, number: int) -> int:
        """How many samples a part has to write."""
        start = number * self.layout.shard_samples
        return min(start + self.layout.shard_samples, len(self.split)) - start

    def part_name(self, number: int) -> str:
        """Where a part's side record lies."""
        return f"{PARTS}/{number:05d}"

    def trusted(self, data: bytes, sizes: dict[str, int]) -> Part | None:
        """A part by its side record, where that is of this very job and all shards are whole; else None.

        Args:
            data: The side record.
            sizes: The bytes of the files that are there.
        """
        part = Part.from_bytes(data)
        if part is None or part.fingerprint != self.fingerprint:
            return None
        return part if all(sizes.get(shard.url) == shard.filesize for shard in part.shards) else None

    def _positions(self, number: int) -> NDArray[np.int64]:
        start = number * self.layout.shard_samples
        stop = start + self.asked(number)
        if self.layout.order is None:
            return np.arange(start, stop, dtype=np.int64)
        return Permutation(size=len(self.split), seed=self.layout.order).at(start, stop)

    def _samples(self, number: int, tally: Tally) -> Iterator[Sample]:
        """The samples of a part that are kept."""
        positions = self._positions(number)
        for position, record in zip(positions.tolist(), records_at(self.split, positions), strict=True):
            if isinstance(record, Skipped):
                tally.skip(record.key, record.reason)
            else:
                try:
                    yield self._sample(record, position, tally)
                except (Dropped, BadImage) as reason:
                    tally.skip(record.key, str(reason))

    def _sample(self, record: Record, position: int, tally: Tally) -> Sample:
        if self.cleaner.config.duplicates and is_duplicate(self._duplicates, position):
            raise Dropped(LeftOut.DUPLICATE)
        record = self.cleaner.screen(record, tally.captions)
        pictures = {name: self._stored(data) for name, data in record.images.items()}
        return sample_of(record, pictures, f"longer side made {self.layout.max_side} pixels, quality {_QUALITY}")

    @cached_property
    def _duplicates(self) -> NDArray[np.uint8]:
        return read_duplicates(self.target)

    def _stored(self, data: bytes) -> Stored:
        told, max_side = self.layout.checksums == "sha256", self.layout.max_side
        sha256 = hashlib.sha256(data).hexdigest() if told or self.cleaner.wants_sha256 else None
        picture = self.cleaner.check(data, sha256)
        if max_side is None or max(picture.width, picture.height) <= max_side:
            return Stored(picture, sha256 if told else None)
        smaller = shrink_image(data, max_side, _QUALITY)
        extension, width, height = measure_image(smaller, self.cleaner.config.max_pixels)
        return Stored(
            Picture(data=smaller, extension=extension, width=width, height=height),
            hashlib.sha256(smaller).hexdigest() if told else None,
            # Lists of exclusions may name it, whatever the checksums.
            Original(sha256 or hashlib.sha256(data).hexdigest(), picture.width, picture.height),
        )

    def _write_shards(self, number: int, samples: Iterator[Sample]) -> tuple[list[Shard], list[str], list[Row]]:
        """Streams samples into tars; returns these, the samples' keys, and the rows of samples.npy."""
        shards, keys, rows = list[Shard](), list[str](), list[Row]()
        limit = math.inf if self.layout.shard_bytes is None else self.layout.shard_bytes
        sample = next(samples, None)
        while sample is not None:
            url, end, first = self._shard_name(number, len(shards)), 0, len(rows)
            digest = hashlib.sha256() if self.layout.checksums == "sha256" else None
            with self.target.write(url, appended=True) as file:
                while sample is not None and (end == 0 or end + sample.size + len(_END) <= limit):
                    begin, end = end, end + sample.size
                    _write(sample.parts, file, digest)
                    keys.append(sample.key)
                    rows.append((begin, end, sample.captions, sample.statements, sample.checksum))
                    sample = next(samples, None)
                _write([_END], file, digest)
            told, size = None if digest is None else digest.hexdigest(), end + len(_END)
            shards.append(Shard(url=url, nsamples=len(rows) - first, filesize=size, sha256=told))
        return shards, keys, rows

    def _shard_name(self, number: int, which: int) -> str:
        """All names have the same number of digits, so that their order is the order of the shards."""
        digits = max(_DIGITS, len(str(self.count - 1)))
        suffix = "" if self.layout.shard_bytes is None else f"-{which:04d}"
        return f"{number:0{digits}d}{suffix}.tar"


def _write(parts: list[bytes], file: BinaryIO, digest: "hashlib._Hash | None") -> None:
    for data in parts:
        file.write(data)
        if digest is not None:
            digest.update(data)
