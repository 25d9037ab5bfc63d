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
IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
_CHUNK = 1 << 20

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
    handle = file.fileno()
    total = os.fstat(handle).st_size
    position = 0
    extension = Extension()
    while position >= 0:
        try:
            if _is_zero(os.pread(handle, BLOCK, position)):
                position = _behind_end_mark(handle, position, total, on_damage)
                continue
            found = tar_headers.read_header(handle, position)
            if found.kind in tar_headers.EXTENSIONS:
                found.check_within(total)
                extension = tar_headers.extend(extension, found, position, handle)
                position = found.end
                continue
            found = extension.applied(found)
            found.check_within(total)
        except BadHeader as error:
            position, extension = _behind_damage(handle, position, total, str(error), on_damage), Extension()
            continue
        reason = _why_refused(found)
        if reason is not None:
            on_damage(Damage(kind="unsafe member", what=reason, name=found.name))
        elif found.kind != tar_headers.FOLDER:
            begin = position if extension.begin is None else extension.begin
            yield Member(name=found.name, begin=begin, data=found.data, size=found.size, end=found.end)
        position, extension = found.end, Extension()


def _why_refused(found: Header) -> str | None:
    if found.kind == tar_headers.FOLDER or found.kind in tar_headers.FILE:
        return why_unsafe(found.name)
    return "sparse files are not read" if found.kind == tar_headers.SPARSE else "it is a link or a device"


def _behind_damage(handle: int, position: int, total: int, what: str, on_damage: OnDamage) -> int:
    """Reports a header that cannot be followed; returns where the next good one is, or -1."""
    if position >= total:
        on_damage(Damage(kind="truncated tar", what="truncated (no end mark)"))
        return -1
    following = _next_header(handle, position + 1)
    if following < 0:
        on_damage(Damage(kind="truncated tar", what=f"truncated or not a tar, from byte {position} on: {what}"))
    else:
        on_damage(Damage(kind="broken tar", what=f"broken from byte {position} to {following}: {what}"))
    return following


def _behind_end_mark(handle: int, position: int, total: int, on_damage: OnDamage) -> int:
    """Looks whether zeros are the end of the tar; returns where it goes on if they are not, or -1."""
    place = position
    while chunk := os.pread(handle, _CHUNK, place):
        if not _is_zero(chunk):
            on_damage(Damage(kind="broken tar", what=f"goes on behind an end mark at byte {position}"))
            return _next_header(handle, place)
        place += len(chunk)
    if total - position < 2 * BLOCK:
        on_damage(Damage(kind="truncated tar", what="truncated (no end mark)"))
    return -1


def _is_zero(block: bytes) -> bool:
    return bool(block) and block.count(0) == len(block)


def _next_header(handle: int, position: int) -> int:
    """Where the next header with a right checksum begins, at whatever byte; -1 where there is none."""
    magic, overlap = 257, BLOCK
    while len(chunk := os.pread(handle, _CHUNK + overlap, position)) >= BLOCK:
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


def group_samples(members: Iterable[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Groups neighbouring members of the same key into samples.

    A kind of member that comes twice begins another sample of that key. Files without a key or an extension
    (README, .DS_Store) belong to no sample, for any WebDataset reader.
    """
    key, group, extensions = "", list[Member](), set[str]()
    for member in members:
        extension = member.extension
        if not extension or not member.key.rpartition("/")[2]:
            continue
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
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(format=tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a member of so many bytes."""
    return bytes(-size % BLOCK)
