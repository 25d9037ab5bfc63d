"""Random access to the samples of a shard folder: one read of the sample's byte range, parsed in memory."""

import io
import os
import re
import tarfile
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal
from zlib import adler32

from webdataset.tariterators import group_by_keys

from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.index import COLUMNS, INDEX, load_index
from data_prep.tars import BLOCK, why_unsafe
from data_prep.texts import BadText, read_fields
from pipeline.data.decode import BadSample
from pipeline.data.order import Unit, Units

TextKind = Literal["captions", "statements"]
_IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
_IMAGE_SETS = ({""}, {"left", "right"})
_ORDINARY = re.compile(r"[A-Za-z0-9_-]+(\.left|\.right)?\.(png|jpg|jpeg|webp|txt|json)")  # safe at a glance
_OPEN_SHARDS = 128  # file handles a folder may hold in each process


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample as it lies in its shard.

    Attributes:
        key: its name in the split.
        images: encoded pictures; {"": data}, or {"left": data, "right": data} for a pair.
        fields: what KEY.json says; "captions" is always there.
    """

    key: str
    images: dict[str, bytes]
    fields: dict[str, Any]

    @property
    def image(self) -> bytes:
        """The only picture of the sample."""
        if "" not in self.images:
            raise BadSample(f"has the pictures {sorted(self.images)} where one is wanted")
        return self.images[""]

    @property
    def captions(self) -> list[str]:
        """All captions; none for a picture of which nothing true is known."""
        captions: list[str] = self.fields["captions"]
        return captions

    @property
    def group(self) -> str:
        """What the sample is counted with; its key where it stands alone."""
        return str(self.fields.get("group", self.key))

    @property
    def cluster(self) -> str:
        """Name of what depends on each other: the presentation of an NLVR example, else the group."""
        return str(self.fields.get("presentation", self.group))

    def text(self, kind: TextKind, number: int) -> tuple[str, int]:
        """One text and its label: 1 true (captions are), 0 false."""
        if kind == "captions":
            return str(self.captions[number]), 1
        statement = self.fields["statements"][number]
        return str(statement["text"]), int(bool(statement["label"]))


class ShardFolder:
    """A split folder: tar shards, index.json, samples.npy.

    Files are opened when they are first read, and read without moving a shared position, so that an object
    may go through a fork; it may be pickled too.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads the index; no shard is touched.

        Raises:
            UserError: there is no usable index, or a shard it names is not a file of this folder.
        """
        self._handles: dict[int, int] = {}
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; give the folder of a split, with shards and {INDEX}")
        index, self._rows = load_index(self.path)
        self._shards: list[str] = [self._checked(shard["url"]) for shard in index["shardlist"]]
        self.shard_rows: list[int] = [int(shard["nsamples"]) for shard in index["shardlist"]]
        self._filesizes: list[int] = [int(shard["filesize"]) for shard in index["shardlist"]]
        self._ends = list(accumulate(self.shard_rows))

    def _checked(self, url: str) -> str:
        if url != Path(url).name or url.startswith("pipe:") or ":" in url:
            raise UserError(
                f"{self.path / INDEX} names the shard {url!r}; only plain file names in the same folder "
                "are read (never commands): copy the shard there and run `trimline index` on the folder"
            )
        return url

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind."""
        return self.__dict__ | {"_handles": {}}

    def __len__(self) -> int:
        """Number of samples, all shards together."""
        return len(self._rows)

    @cached_property
    def digest(self) -> str:
        """sha256 of index.json: another one is other data."""
        return sha256_file(self.path / INDEX)

    def units(self, kind: TextKind, unit: Unit) -> Units:
        """What order needs to know of this folder."""
        column = self._rows[:, COLUMNS.index(kind)]
        return Units(self.digest, self.shard_rows, column, unit)

    def place(self, row: int) -> str:
        """Shard and number in it of a sample, to name one whose key cannot be read."""
        shard = self._shard_of(row)
        return f"{self._shards[shard]}#{row - (self._ends[shard] - self.shard_rows[shard])}"

    def read(self, row: int) -> Sample:
        """Reads one sample.

        Raises:
            BadSample: its bytes are missing (a truncated shard) or are not what a sample should be.
            UserError: the shard cannot be opened, or holds something that must not be read.
        """
        begin, end = (int(value) for value in self._rows[row, :2])
        shard = self._shard_of(row)
        if not 0 <= begin < end <= self._filesizes[shard]:
            raise BadSample(f"samples.npy names bytes that {self._shards[shard]} does not have")
        data = os.pread(self._handle(shard), end - begin, begin)
        if len(data) < end - begin:
            raise BadSample(f"shard {self._shards[shard]} is truncated")
        return parse_sample(data)

    def _shard_of(self, row: int) -> int:
        return bisect_right(self._ends, row)

    def _handle(self, shard: int) -> int:
        handle = self._handles.get(shard)
        if handle is None:
            if len(self._handles) >= _OPEN_SHARDS:
                os.close(self._handles.pop(next(iter(self._handles))))
            path = self.path / self._shards[shard]
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UserError(f"cannot read shard {path} ({error.strerror}); fetch or write it again") from error
            self._handles[shard] = handle
        return handle

    def close(self) -> None:
        """Closes the files of this process; they are opened again when they are needed."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()


def parse_sample(data: bytes) -> Sample:
    """The sample that a run of tar members makes.

    Raises:
        BadSample: the members are broken, of several samples, or lack a picture or the JSON.
        UserError: a member is pickled, or its name leads out of the folder.
    """
    members = _plain_members(data)
    if members is None:
        members = _any_members(data)
    for name, _ in members:
        reason = None if _ORDINARY.fullmatch(name) else why_unsafe(name)
        if reason:
            raise UserError(f"shard member {name!r} is refused: {reason}; write the shard again without it")
    try:
        grouped = list(group_by_keys({"fname": n, "data": d, "__url__": ""} for n, d in members))
    except ValueError as error:
        raise BadSample("a member occurs twice") from error
    if len(grouped) != 1:
        raise BadSample(f"the index points at {len(grouped)} samples instead of one")
    parts: dict[str, Any] = grouped[0]
    key = parts.pop("__key__")
    images = {name.rpartition(".")[0]: parts[name] for name in parts if _is_image(name)}
    if set(images) not in _IMAGE_SETS or len(images) < sum(map(_is_image, parts)):
        raise BadSample("has not one picture, or a left and a right one")
    return Sample(key=key, images=images, fields=_fields(parts))


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in _IMAGE_EXTENSIONS


def _fields(parts: dict[str, Any]) -> dict[str, Any]:
    try:
        return read_fields(parts)
    except BadText as error:
        raise BadSample(str(error)) from error


def _plain_members(data: bytes) -> list[tuple[str, bytes]] | None:
    """Name and bytes of each member where all are plain ustar files, as ours are; None otherwise.

    Ten times as fast as tarfile, and as strict: checksum, magic, type and size are verified.
    """
    members, position = [], 0
    while position < len(data):
        header = data[position : position + BLOCK]
        if len(header) < BLOCK or header[257:263] != b"ustar\0" or header[156:157] not in (b"0", b"\0"):
            return None
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
            stated = int(header[148:156].rstrip(b"\0 "), 8)
            name = header[:100].partition(b"\0")[0].decode()
            prefix = header[345:500].partition(b"\0")[0].decode()
        except ValueError:
            return None
        # The checksum is the sum of all bytes with its own field taken as eight spaces.
        if stated != _sum(header[:256]) + _sum(header[256:]) - sum(header[148:156]) + 256:
            return None
        begin = position + BLOCK
        position = begin + -(-size // BLOCK) * BLOCK
        if position > len(data):
            return None
        members.append((f"{prefix}/{name}" if prefix else name, data[begin : begin + size]))
    return members


def _sum(half: bytes) -> int:
    """The sum of at most 256 bytes, in a tenth of the time: Adler has it, plus one, in the low half."""
    return (adler32(half) & 0xFFFF) - 1


def _any_members(data: bytes) -> list[tuple[str, bytes]]:
    """The same by tarfile: long names, other dialects, and the last word on what is broken."""
    members, end = [], 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
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
