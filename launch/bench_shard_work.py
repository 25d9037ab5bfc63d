"""What the processes of `trimline bench shard` do: each contender's way through one shard of the same samples."""

import concurrent.futures as futures
import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import simplejpeg
from PIL import Image

from data_prep.executors import Work
from data_prep.files import atomic_file, read_file, sha256_file
from data_prep.job import Checksums as ChecksumsKind
from data_prep.records import Record


@dataclass(frozen=True, kw_only=True)
class PictureSplit:
    """`size` samples over the pictures of a folder, again and again; a caption each.

    Attributes:
        paths: The pictures.
        size: Samples.
        shard_samples: Samples a shard.
    """

    paths: tuple[str, ...]
    size: int
    shard_samples: int

    def __len__(self) -> int:
        """How many samples there are."""
        return self.size

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Reads the samples of the positions start to stop - 1."""
        for number in range(start, stop):
            yield Record(
                key=f"{number:09d}",
                source="bench",
                id=str(number),
                images={"": self.read(number)},
                captions=(f"a picture that somebody took of something, the number of which is {number}",),
            )

    def read(self, number: int) -> bytes:
        """Reads the picture of a sample."""
        return read_file(self.paths[number % len(self.paths)])

    def shard(self, number: int) -> range:
        """The samples of one shard."""
        start = number * self.shard_samples
        return range(start, min(start + self.shard_samples, self.size))

    def shards(self) -> range:
        """The numbers of the shards."""
        return range(-(-self.size // self.shard_samples))


@dataclass(frozen=True, kw_only=True)
class TarWriterLoop:
    """The loop that webdataset's documentation shows, with the fields that ours writes.

    Attributes:
        split: The samples.
        folder: Where its shards go.
        checksums: Whether it makes our two checksums as well, of every picture and of the shard.
    """

    split: PictureSplit
    folder: str
    checksums: bool = False

    def __call__(self, number: int) -> int:
        """Writes one shard."""
        import webdataset  # torch comes with it

        path = Path(self.folder) / f"{number:05d}.tar"
        span = self.split.shard(number)
        with webdataset.TarWriter(str(path)) as sink:
            for record in self.split.records(span.start, span.stop):
                text = {"key": record.key, "source": record.source, "id": record.id, "captions": list(record.captions)}
                if self.checksums:
                    text["sha256"] = hashlib.sha256(record.images[""]).hexdigest()
                sink.write({"__key__": record.key, "jpg": record.images[""], "txt": record.captions[0], "json": text})
        if self.checksums:
            sha256_file(path)
        return len(span)


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """Nothing but reading each picture's file and its checksums, which no writer of such shards can leave out.

    Attributes:
        split: The samples.
        kind: crc32: that of every sample; sha256: those of every picture and of the shard as well.
    """

    split: PictureSplit
    kind: ChecksumsKind

    def __call__(self, number: int) -> int:
        """Makes those of one shard."""
        whole, span = hashlib.sha256(), self.split.shard(number)
        for sample in span:
            data = self.split.read(sample)
            zlib.crc32(data)
            if self.kind == "sha256":
                hashlib.sha256(data).hexdigest()
                whole.update(data)
        return len(span)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Nothing but the bytes of pictures that lie in memory, written and fsynced as shards are."""

    split: PictureSplit
    folder: str

    def __call__(self, number: int) -> int:
        """Writes one file."""
        pictures, span = _in_memory(self.split), self.split.shard(number)
        with atomic_file(Path(self.folder) / f"{number:05d}.bin", appended=True) as file:
            for sample in span:
                file.write(pictures[sample % len(pictures)])
        return len(span)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Nothing but decoding, in full and to RGB, pictures that lie in memory."""

    split: PictureSplit

    def __call__(self, number: int) -> int:
        """Decodes those of one shard."""
        pictures, span = _in_memory(self.split), self.split.shard(number)
        for sample in span:
            decode(pictures[sample % len(pictures)])
        return len(span)


def decode(data: bytes) -> None:
    """Decodes a picture: a JPEG as the training loader does, anything else with Pillow."""
    if data.startswith(b"\xff\xd8\xff"):
        simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)
    else:
        with Image.open(io.BytesIO(data)) as image:
            image.convert("RGB")


_MEMORY: dict[tuple[str, ...], list[bytes]] = {}


def _in_memory(split: PictureSplit) -> list[bytes]:
    if split.paths not in _MEMORY:
        _MEMORY[split.paths] = [split.read(number) for number in range(len(split.paths))]
    return _MEMORY[split.paths]


@dataclass(frozen=True)
class WarmPool:
    """An executor of processes that run already, so that no contender pays for their start."""

    pool: futures.ProcessPoolExecutor
    in_process: bool = False

    def map(self, work: Work, numbers: Iterable[int]) -> Iterator[int]:
        """See `data_prep.executors.Executor.map`."""
        for future in futures.as_completed([self.pool.submit(work, number) for number in numbers]):
            yield future.result()
