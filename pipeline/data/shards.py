"""Random access to the samples of a shard folder: one read of the sample's byte range, parsed in memory."""

import io
import os
import re
import shutil
import tarfile
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from struct import Struct
from typing import Any
from zlib import adler32

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys

from data_prep.checksums import of_members
from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.index import COLUMNS, COUNTS, INDEX, SAMPLES, load_index, skipped_counts
from data_prep.mirror import mirror_for_all, mirror_index, remote_url
from data_prep.reasons import UNASKED
from data_prep.remote import RemoteFolder, is_url, local_path
from data_prep.tars import BLOCK, is_of_sample, why_unsafe
from data_prep.texts import BadText, read_fields
from pipeline.data.cache import BlockCache
from pipeline.data.cached_reader import CachedReader
from pipeline.data.decode import BadSample, Encoded
from pipeline.data.order import Unit, Units
from pipeline.data.remote_reader import DirectReader
from pipeline.data.sample import ASKED, EveryImage, Sample, TextKind
from pipeline.data.storage import LocalReader, Range, Reader, ShardList, StorageConfig

_IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
_IMAGE_SETS = ({""}, {"left", "right"})
# Key and extension of a name that is safe at a glance, cut where webdataset cuts it.
_ORDINARY = re.compile(r"([A-Za-z0-9_-]+)\.((?:left\.|right\.)?(?:png|jpg|jpeg|webp)|txt|json)")
_LARGEST_SHARD, _LARGEST_SAMPLE = 1 << 40, 1 << 30  # an index from elsewhere may claim anything
# Of a tar member: name, size, checksum, type, magic, prefix of the name.
_HEADER = Struct("100s24x12s12x8sc100x6s82x155s")
_AHEAD = 64  # samples that are announced at a time where all are read
_PLAIN = re.compile(r"[^/\\:\x00-\x1f]+")  # a file name, neither a path nor a command


class ShardFolder:
    """A split: tar shards, index.json, samples.npy; in a local folder or behind a URL.

    It may go through a fork, and be pickled. What it keeps does not grow with the samples: rows of samples.npy are
    mapped, and read where they are needed.

    Attributes:
        left_out: Samples that ask something and could not be written, as the index's account says.
    """

    def __init__(self, path: str | Path, storage: StorageConfig | None = None) -> None:
        """Reads the index; no shard is touched.

        Args:
            path: the folder or its URL; or a folder with the index of shards that are behind a URL.
            storage: how shards are read.

        Raises:
            UserError: there is no usable index, or a shard it names is not a file of this folder.
        """
        storage = storage or StorageConfig()
        self.path = self._local(path, storage)
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; give the folder of a split, with shards and {INDEX}")
        index, rows = load_index(self.path)
        self._rows = np.asarray(rows)  # mapped still, but looked up in a tenth of the time
        shards: list[dict[str, Any]] = index["shardlist"]
        self._shards = ShardList(
            names=[self._checked(shard["url"]) for shard in shards],
            sizes=[int(shard["filesize"]) for shard in shards],
            sha256=[shard.get("sha256", shard.get("samples_sha256")) for shard in shards],
        )
        largest = max(self._shards.sizes, default=0)
        if largest > _LARGEST_SHARD:
            raise UserError(f"{self.path / INDEX} names a shard of {largest} bytes; make the index again")
        self.shard_rows: list[int] = [int(shard["nsamples"]) for shard in shards]
        self._ends = list(accumulate(self.shard_rows))
        keys = [key for pair in COUNTS.values() for key in pair]
        self._counts = {key: _counted(shards, key) for key in keys}
        self._checksums = storage.checksums
        skipped = skipped_counts(index["account"])
        self.left_out = sum(count for reason, count in (skipped or {}).items() if reason not in UNASKED)
        self.reader = self._open(storage)

    def _local(self, path: str | Path, storage: StorageConfig) -> Path:
        """Where the index is, which is fetched where the path is a URL."""
        if not is_url(path):
            return local_path(path)
        remote = RemoteFolder(str(path), storage.patience)
        if storage.cache_dir is not None:
            cache = BlockCache(storage.cache_dir, storage.cache_bytes)
            return mirror_for_all(remote, cache.folder / "indexes")
        folder = Path(tempfile.mkdtemp(prefix="trimline-"))
        weakref.finalize(self, _remove, folder, os.getpid())
        mirror_index(remote, folder)
        return folder

    def _open(self, storage: StorageConfig) -> Reader:
        url = remote_url(self.path)
        if url is None:
            return LocalReader(self.path, self._shards)
        remote = RemoteFolder(url, storage.patience)
        if storage.cache_dir is not None:
            cache = BlockCache(storage.cache_dir, storage.cache_bytes)
            return CachedReader(remote, self._shards, cache)
        return DirectReader(remote, self._shards)

    def _checked(self, url: str) -> str:
        if not _PLAIN.fullmatch(url) or url in (".", ".."):
            raise UserError(
                f"{self.path / INDEX} names the shard {url!r}; only plain file names in the same folder "
                "are read (never commands): copy the shard there and run `trimline index` on the folder"
            )
        return url

    def __len__(self) -> int:
        """Number of samples, all shards together."""
        return len(self._rows)

    @cached_property
    def digest(self) -> str:
        """sha256 of index.json: another one is other data."""
        return sha256_file(self.path / INDEX)

    def units(self, kind: TextKind, unit: Unit) -> Units:
        """What order needs to know of this folder; the index does not count questions: see `question_units`."""
        if isinstance(kind, EveryImage):
            every = np.ones(len(self._rows), dtype=np.int64)
            return Units(self.digest, self.shard_rows, every, unit, np.array(self.shard_rows, dtype=np.int64))
        assert kind not in ASKED
        name = "captions" if kind == "captions" else "statements"
        column = self._rows[:, COLUMNS.index(name)]
        total, having = COUNTS[name]
        sizes = self._counts[total if unit == "pair" else having]
        return Units(self.digest, self.shard_rows, column, unit, sizes)

    def place(self, row: int) -> str:
        """Shard and number in it of a sample, to name one whose key cannot be read."""
        return "{}#{}".format(*self.shard_of(row))

    def shard_of(self, row: int) -> tuple[str, int]:
        """Name of a sample's shard, and its number in it."""
        shard = self._shard_of(row)
        return self._shards.names[shard], row - (self._ends[shard] - self.shard_rows[shard])

    def expect(self, rows: Sequence[int]) -> None:
        """Announces samples that will be read soon."""
        if self.reader.reads_ahead:
            ranges = (self._range(row) for row in rows)
            self.reader.expect([where for where in ranges if self._is_within(where)])

    def in_order(self) -> Iterator[tuple[int, Sample | BadSample]]:
        """Every row and its sample, or why that cannot be used: each is announced once, a little before it is read."""
        try:
            for row in range(len(self)):
                if row % _AHEAD == 0:
                    begin = row + _AHEAD if row else 0
                    self.expect(range(begin, min(row + 2 * _AHEAD, len(self))))
                try:
                    sample: Sample | BadSample = self.read(row)
                except BadSample as error:
                    sample = error
                yield row, sample
        finally:
            self.close()

    def read(self, row: int) -> Sample:
        """Reads one sample.

        Raises:
            BadSample: its bytes are missing (a truncated shard) or are not what a sample should be.
            UserError: the shard cannot be opened, or holds something that must not be read.
        """
        where = self._range(row)
        if not self._is_within(where):
            raise BadSample(f"{SAMPLES} names bytes that its shard does not or cannot have: {self._name(where)}")
        if not self._checksums:
            return parse_sample(self._bytes(self.reader.read, where))
        stated = int(self._rows[row, COLUMNS.index("crc32")])
        for read in (self.reader.read, self.reader.read_anew):
            data = self._bytes(read, where)
            if _checksum(data) == stated:
                return parse_sample(data)
        raise BadSample(f"has not the checksum that {SAMPLES} has for it")

    def _bytes(self, read: Callable[[Range], bytes], where: Range) -> bytes:
        data = read(where)
        if len(data) < where.end - where.begin:
            raise BadSample(f"shard is truncated: {self._name(where)}")
        return data

    def _name(self, where: Range) -> str:
        return self._shards.names[where.shard]

    def _range(self, row: int) -> Range:
        begin, end = self._rows[row, :2].tolist()
        return Range(self._shard_of(row), begin, end)

    def _is_within(self, where: Range) -> bool:
        end = min(self._shards.sizes[where.shard], where.begin + _LARGEST_SAMPLE)
        return 0 <= where.begin < where.end <= end

    def _shard_of(self, row: int) -> int:
        return bisect_right(self._ends, row)

    def close(self) -> None:
        """Closes the files of this process; they are opened again when they are needed."""
        self.reader.close()


def _remove(folder: Path, pid: int) -> None:
    """Removes a fetched index; it belongs to the process that made it, not to those that fork from it."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _counted(shards: Sequence[dict[str, Any]], key: str) -> NDArray[np.int64] | None:
    """A count of every shard; None where an index, such as an older one, does not have it."""
    counts = [shard.get(key) for shard in shards]
    if not all(type(count) is int and 0 <= count < 1 << 62 for count in counts):
        return None
    return np.array(counts, dtype=np.int64)


def parse_sample(data: bytes) -> Sample:
    """The sample that a run of tar members makes.

    Raises:
        BadSample: the members are broken, of several samples, or lack a picture or the JSON.
        UserError: a member is pickled, or its name leads out of the folder.
    """
    members = _members(data)
    key, parts = _ordinary_parts(members) or _any_parts(members)
    pictures = [name for name in parts if _is_image(name)]
    images = {name.rpartition(".")[0]: parts[name] for name in pictures}
    if set(images) not in _IMAGE_SETS or len(images) < len(pictures):
        raise BadSample("has not one picture, or a left and a right one")
    return Sample(key=key, images=images, fields=_fields(parts))


def _ordinary_parts(members: Sequence[tuple[str, Encoded]]) -> tuple[str, dict[str, Encoded]] | None:
    """Key and members by extension of one sample with ordinary names, in a quarter of the time; else None."""
    parts, key = dict[str, Encoded](), None
    for name, data in members:
        match = _ORDINARY.fullmatch(name)
        if match is None:
            return None
        base, extension = match.groups()
        if extension in parts or base != (key or base):
            return None
        key, parts[extension] = base, data
    return None if key is None else (key, parts)


def _any_parts(members: Sequence[tuple[str, Encoded]]) -> tuple[str, dict[str, Encoded]]:
    """The same by webdataset, and what is wrong with it."""
    for name, _ in members:
        reason = why_unsafe(name)
        if reason:
            raise UserError(f"shard member {name!r} is refused: {reason}; write the shard again without it")
    try:
        grouped = list(group_by_keys({"fname": n, "data": d, "__url__": ""} for n, d in members))
    except ValueError as error:
        raise BadSample("a member occurs twice") from error
    if len(grouped) != 1:
        raise BadSample(f"the index does not point at one sample: {len(grouped)} samples")
    parts: dict[str, Any] = grouped[0]
    return parts.pop("__key__"), parts


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in _IMAGE_EXTENSIONS


def _fields(parts: dict[str, Any]) -> dict[str, Any]:
    try:
        return read_fields({name: bytes(parts[name]) for name in ("json", "txt") if name in parts})
    except BadText as error:
        raise BadSample(str(error)) from error


def _members(data: bytes) -> Sequence[tuple[str, Encoded]]:
    members = _plain_members(data)
    return _any_members(data) if members is None else members


def _checksum(data: bytes) -> int | None:
    """The checksum of a sample, as samples.npy has it; None where it is not even tar."""
    try:
        return of_members((name, [piece]) for name, piece in _members(data) if is_of_sample(name))
    except BadSample:
        return None


def _plain_members(data: bytes) -> Sequence[tuple[str, Encoded]] | None:
    """Name and bytes of each member where all are plain ustar files, as ours are; None otherwise.

    Ten times as fast as tarfile, and as strict: checksum, magic, type and size are verified. Nothing is copied.
    """
    members, position, view, length = [], 0, memoryview(data), len(data)
    while position < length:
        if position + BLOCK > length:
            return None
        name, octal, checksum, kind, magic, prefix = _HEADER.unpack_from(data, position)
        if magic != b"ustar\0" or kind not in (b"0", b"\0"):
            return None
        try:
            size, stated = int(octal.rstrip(b"\0 "), 8), int(checksum.rstrip(b"\0 "), 8)
            path = name.partition(b"\0")[0].decode()
            folder = prefix.partition(b"\0")[0].decode()
        except ValueError:
            return None
        # The checksum is the sum of all bytes with its own field taken as eight spaces.
        begin = position + BLOCK
        if stated != _sum_of_header(data[position:begin]) - _sum(checksum) + 8 * ord(" "):
            return None
        position = begin + -(-size // BLOCK) * BLOCK
        if size < 0 or position > length:
            return None
        members.append((f"{folder}/{path}" if folder else path, view[begin : begin + size]))
    return members


def _sum_of_header(header: bytes) -> int:
    """The sum of 512 bytes."""
    return _sum(header) if header.isascii() else _sum(header[: BLOCK // 2]) + _sum(header[BLOCK // 2 :])


def _sum(part: bytes) -> int:
    """The sum of bytes that is below 65521, in a tenth of the time: Adler has it, plus one, in the low half."""
    return (adler32(part) & 0xFFFF) - 1


def _any_members(data: bytes) -> Sequence[tuple[str, Encoded]]:
    """The same by tarfile: long names, other dialects, and the last word on what is broken."""
    members, end = [], 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                if info.size < 0:  # tarfile would go back, and come here again for ever
                    raise BadSample("tar members are broken")
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if info.isdir():
                    continue
                file = tar.extractfile(info) if info.isreg() else None
                if file is None:
                    raise BadSample("a member is a link or a device")
                members.append((info.name, file.read()))
    except (tarfile.TarError, ValueError, OSError) as error:
        raise BadSample("tar members are broken") from error
    if end != len(data):  # tarfile takes a broken header for the end of the file
        raise BadSample("tar members are broken")
    return members
