"""Reads the layout of tar files: which member lies where, and which members make a sample."""

import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

BLOCK = 512
# Readers of WebDataset shards unpickle these by default; nobody should have to trust a shard that far.
PICKLED = frozenset({"pyd", "pickle", "pkl", "pth", "pt"})
_NAME_BYTES = 100
_OCTAL_SIZE = 8**11 - 1
# The header of a nameless, empty file; name, size and checksum (summed as eight spaces) are put in.
_HEADER = tarfile.TarInfo("").tobuf(format=tarfile.USTAR_FORMAT)
_HEADER_SUM = sum(_HEADER[:124]) + sum(_HEADER[135:148]) + 8 * ord(" ") + sum(_HEADER[156:])


class BadTar(Exception):
    """A tar file that is truncated, or that holds what a shard must not hold."""


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
        return list(_members(file, path.stat().st_size))


def _members(file: BinaryIO, total: int) -> Iterator[Member]:
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if info.isdir():
                    continue
                reason = why_unsafe(info.name) if info.isreg() else "it is a link or a device"
                if reason:
                    raise BadTar(f"member {info.name!r} is refused: {reason}")
                yield Member(name=info.name, begin=info.offset, data=info.offset_data, size=info.size, end=end)
    except tarfile.TarError as error:
        raise BadTar(f"truncated or not a tar ({error})") from error
    # tarfile takes a tar that was cut between two members for a whole one: look for the end mark.
    file.seek(end)
    if total < end + 2 * BLOCK or any(file.read(2 * BLOCK)):
        raise BadTar("truncated (no end mark)")


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Reads one member's bytes from its opened tar."""
    file.seek(member.data)
    return file.read(member.size)


def group_samples(members: list[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Groups neighbouring members of the same key into samples."""
    for key, group in itertools.groupby(members, key=lambda member: member.key):
        yield key, list(group)


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
