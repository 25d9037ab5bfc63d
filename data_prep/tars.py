"""Reads the layout of tar files: which member lies where, and which members make a sample.

The headers are read here and not by tarfile, because a shard may come from anybody: tarfile allocates what a header
claims (gigabytes for a long name), keeps every member in memory, cannot go on behind a broken header, and takes a cut
between two members for the end. Nothing is ever unpacked onto the file system.
"""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from data_prep import tar_headers
from data_prep.tar_headers import BLOCK as BLOCK
from data_prep.tar_headers import BadHeader, Extension, Header

# Readers of WebDataset shards unpickle these by default; nobody should have to trust a shard that far.
PICKLED = frozenset({"pyd", "pickle", "pkl", "pth", "pt"})
_NAME_BYTES = 100
_OCTAL_SIZE = 8**11 - 1
# The header of a nameless, empty file; name, size and checksum (summed as eight spaces) are put in.
_HEADER = tarfile.TarInfo("").tobuf(format=tarfile.USTAR_FORMAT)
_HEADER_SUM = sum(_HEADER[:124]) + sum(_HEADER[135:148]) + 8 * ord(" ") + sum(_HEADER[156:])
IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
_TEXTS = frozenset({"txt", "json"})
_CHUNK = 1 << 20
_LARGEST_SCAN = 256 << 20

DamageKind = Literal["truncated tar", "broken tar", "unsafe member"]


class BadTar(Exception):
    """A tar file that is truncated, or that holds what a shard must not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A stretch of a tar that gives no member: what is wrong there, and the member's name where it is known."""

    kind: DamageKind
    what: str
    name: str | None = None

    def __str__(self) -> str:
        """One line."""
        return self.what if self.name is None else f"member {self.name!r} is refused: {self.what}"


OnDamage = Callable[[Damage], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where one file lies in a tar: header at `begin`, bytes at `data` to `data + size`, next at `end`."""

    name: str
    begin: int
    data: int
    size: int
    end: int

    @property
    def key(self) -> str:
        """The sample's key: folder and name up to the first dot of the name, as WebDataset splits it."""
        folder, slash, base = self.name.rpartition("/")
        return f"{folder}{slash}{base.partition('.')[0]}"

    @property
    def extension(self) -> str:
        """What follows the key's dot, in lower case: `jpg`, `left.png`, `json`."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def is_of_sample(name: str) -> bool:
    """Whether a file belongs to a sample, for any WebDataset reader: it needs a key and an extension (not README)."""
    key, _, extension = name.rpartition("/")[2].partition(".")
    return bool(key and extension)


def is_image(member: Member) -> bool:
    """Whether a member's name says that it is a picture of a sample."""
    return member.extension.rpartition(".")[2] in IMAGES


def why_unsafe(name: str) -> str | None:
    """Says why a member's name must be refused, or None for a good one."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        return "its name leads out of the folder"
    if not name.isprintable():
        return "its name holds control characters"
    if PICKLED & set(path.name.lower().split(".")[1:]):
        return "pickled members are not read"
    return None


def list_members(path: Path) -> list[Member]:
    """Lists the files of an uncompressed tar, in order, without reading their bytes.

    Raises:
        BadTar: where the tar is truncated or broken, or a member is unsafe or neither file nor folder.
    """
    with open(path, "rb") as file:
        return list(walk(file, refuse))


def refuse(damage: Damage) -> None:
    """For `walk` where every damage is too much.

    Raises:
        BadTar: always.
    """
    raise BadTar(str(damage))


def walk(file: BinaryIO, on_damage: OnDamage) -> Iterator[Member]:
    """Gives the members of a tar one by one, and goes on behind whatever is damaged or refused.

    Args:
        file: The tar, opened; its position is not used.
        on_damage: Called with each stretch that gives no member, in turn with the members.
    """
    yield from _Walk(file.fileno(), on_damage).members()


class _Walk:
    """One way through a tar."""

    def __init__(self, handle: int, on_damage: OnDamage) -> None:
        self._handle, self._on_damage = handle, on_damage
        self._total = os.fstat(handle).st_size
        self._position = 0
        self._last: Member | None = None
        self._overlap = 0

    def members(self) -> Iterator[Member]:
        extension = Extension()
        while self._position >= 0:
            position = self._position
            try:
                if _is_zero(os.pread(self._handle, BLOCK, position)):
                    self._position, extension = self._behind_zeros(), Extension()
                    continue
                found = tar_headers.read_header(self._handle, position)
                if found.kind not in tar_headers.EXTENSIONS:
                    found = extension.applied(found)
                found.check_within(self._total)
                if found.kind in tar_headers.EXTENSIONS:
                    extension = tar_headers.extend(extension, found, position, self._handle)
                    self._position = found.end
                    continue
            except BadHeader as error:
                self._position, extension = self._behind_damage(str(error)), Extension()
                continue
            member = self._member(found, position if extension.begin is None else extension.begin)
            self._position, extension = found.end, Extension()
            if member is not None:
                self._last = member
                yield member

    def _member(self, found: Header, begin: int) -> Member | None:
        reason = _why_refused(found)
        if reason is not None:
            self._on_damage(Damage(kind="unsafe member", what=reason, name=found.name))
        if reason is not None or found.kind == tar_headers.FOLDER:
            return None
        return Member(name=found.name, begin=begin, data=found.data, size=found.size, end=found.end)

    def _behind_damage(self, what: str) -> int:
        """Reports a header that cannot be followed; returns where the next good one is, or -1."""
        if self._position >= self._total:
            self._on_damage(Damage(kind="truncated tar", what="truncated (no end mark)"))
            return self._swallowed()
        following = self._swallowed()
        if following < 0:
            following = _next_header(self._handle, self._position + 1, self._total)
        if following < 0:
            what = f"truncated or not a tar, from byte {self._position} on: {what}"
            self._on_damage(Damage(kind="truncated tar", what=what))
        else:
            what = f"broken at byte {self._position}, readable again from {following}: {what}"
            self._on_damage(Damage(kind="broken tar", what=what))
        return following

    def _behind_zeros(self) -> int:
        """Looks whether zeros are the end of the tar; returns where it goes on if they are not, or -1."""
        place = self._position
        while _is_zero(chunk := os.pread(self._handle, _CHUNK, place)):
            place += len(chunk)
        following = self._swallowed()
        if chunk or following >= 0:
            self._on_damage(Damage(kind="broken tar", what=f"its end mark at byte {self._position} is not its end"))
            return following if following >= 0 else _next_header(self._handle, place, self._total)
        if self._total - self._position < 2 * BLOCK:
            self._on_damage(Damage(kind="truncated tar", what="truncated (no end mark)"))
        return -1

    def _swallowed(self) -> int:
        """Where a header lies inside the member before, which claims bytes that it has lost; -1 where none does.

        A picture or text holds no header by itself. The bytes that are read twice may be as many as the tar has, so
        that nobody can make a small tar take for ever.
        """
        last = self._last
        if last is None or last.end != self._position or not (is_image(last) or last.extension in _TEXTS):
            return -1
        # One that lies at this position is the one that cannot be followed.
        end = min(last.end + BLOCK - 1, last.data + _LARGEST_SCAN, self._total)
        following = _next_header(self._handle, last.data, end)
        self._overlap += self._position - following if following >= 0 else 0
        return following if self._overlap <= self._total else -1


def _why_refused(found: Header) -> str | None:
    if found.kind == tar_headers.FOLDER or found.kind in tar_headers.FILE:
        return why_unsafe(found.name)
    return "sparse files are not read" if found.kind == tar_headers.SPARSE else "it is a link or a device"


def _is_zero(block: bytes) -> bool:
    return bool(block) and block.count(0) == len(block)


def _next_header(handle: int, position: int, end: int) -> int:
    """Where the next header with a right checksum lies, at whatever byte before an end; -1 where there is none."""
    magic = 257
    while len(chunk := os.pread(handle, max(0, min(_CHUNK, end - position)), position)) >= BLOCK:
        found = chunk.find(tar_headers.MAGIC, magic)
        while 0 <= found - magic <= len(chunk) - BLOCK:
            if tar_headers.has_checksum(chunk[found - magic : found - magic + BLOCK]):
                return position + found - magic
            found = chunk.find(tar_headers.MAGIC, found + 1)
        position += len(chunk) - BLOCK + 1
    return -1


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Reads one member's bytes from its opened tar."""
    return os.pread(file.fileno(), member.size, member.data)


def read_chunks(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """Reads one member's bytes, which may be more than fit into memory; fewer where the file ends before."""
    place, end = member.data, member.data + member.size
    while data := os.pread(file.fileno(), min(_CHUNK, end - place), place):
        yield data
        place += len(data)


def group_samples(members: Iterable[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Groups neighbouring members of the same key into samples.

    A kind of member that comes twice begins another sample of that key.
    """
    key, group, extensions = "", list[Member](), set[str]()
    for member in members:
        if not is_of_sample(member.name):
            continue
        extension = member.extension
        if group and (member.key != key or extension in extensions):
            yield key, group
            group, extensions = [], set()
        key = member.key
        group.append(member)
        extensions.add(extension)
    if group:
        yield key, group


def header(name: str, size: int) -> bytes:
    """A deterministic ustar header of 512 bytes: owner 0, time 0, mode 0644."""
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES or size > _OCTAL_SIZE:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(format=tarfile.USTAR_FORMAT)
    # What tarfile makes in ten times the time; three of them belong to every sample.
    digits = b"%011o" % size
    checksum = _HEADER_SUM + sum(encoded) + sum(digits)
    return b"%b%b%b%b%06o%b" % (
        encoded.ljust(_NAME_BYTES, b"\0"), _HEADER[100:124], digits, _HEADER[135:148], checksum, _HEADER[154:],
    )  # fmt: skip


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a member of so many bytes."""
    return bytes(-size % BLOCK)
