"""Where pictures lie: folders, tar and zip files; listed and read without unpacking."""

import itertools
import os
import stat
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_prep import tar_headers
from data_prep.errors import UserError
from data_prep.files import read_file
from data_prep.tar_headers import BLOCK, BadHeader

PICTURE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
# Larger ones are no photographs; the limit is what a wrong or hostile directory entry can make us read.
MAX_FILE_BYTES = 256 << 20
STORED, DEFLATED, UNKNOWN = 0, 1, 2
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
# The flag of zips that were written to a pipe: their headers have no checksum yet.
_CHECKSUM_BEHIND = 8
_HANDLES = 64
_ARCHIVES = (".tar", ".zip")


class NoPicture(Exception):
    """A picture that cannot be given; the message is the reason, from a small fixed set."""


class Place(NamedTuple):
    """Where a file lies: in which store, under which name; in an archive also at which byte and how packed.

    `size` is what the file takes in its store, `offset` its first byte in a tar, its header in a zip, 0 in a folder.
    """

    store: int
    name: str
    offset: int
    size: int
    packing: int


@dataclass(frozen=True, kw_only=True)
class Store:
    """A folder or an archive that holds files."""

    path: str
    kind: Literal["folder", "tar", "zip"]

    def places(self, number: int) -> Iterator[Place]:
        """Lists its files; those of a folder by name, those of an archive as they lie.

        Args:
            number: What the places call this store.

        Raises:
            UserError: an archive is truncated or broken, or the folder cannot be read.
        """
        try:
            yield from {"folder": _list_folder, "tar": _list_tar, "zip": _list_zip}[self.kind](Path(self.path), number)
        except (BadHeader, zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, UnicodeError) as error:
            raise UserError(f"{self.path}: truncated or no {self.kind} ({error}); fetch this file again") from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; check the disk and the rights") from error


def find_stores(paths: Sequence[str], option: str) -> list[Store]:
    """Turns what a user gave into stores; archives in a given folder, or in a folder of it, are stores too.

    Raises:
        UserError: naming a path that is neither a folder nor a plain tar or zip.
    """
    stores = []
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            stores.append(Store(path=str(path.resolve()), kind="folder"))
            below = itertools.chain(path.glob("*"), path.glob("*/*"))
            # Hidden ones are none: macOS puts a ._NAME beside each file that it copies.
            found = sorted(p for p in below if p.suffix in _ARCHIVES and p.is_file() and not _is_hidden(p, path))
            stores += [Store(path=str(p.resolve()), kind=_kind(p)) for p in found]
        elif path.is_file():
            stores.append(Store(path=str(path.resolve()), kind=_kind(path)))
        else:
            raise UserError(f"{option} {given} is not there; give a folder, a tar or a zip file")
    return stores


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _kind(path: Path) -> Literal["tar", "zip"]:
    with open(path, "rb") as file:
        start = file.read(BLOCK)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start[:6] == b"\xfd7zXZ\0":
        raise UserError(f"{path} is compressed as a whole, so single pictures cannot be read; gunzip it, or unpack it")
    # The tar first: one whose last member is a zip ends as a zip does.
    if len(start) == BLOCK and tar_headers.has_checksum(start):
        return "tar"
    if zipfile.is_zipfile(path):
        return "zip"
    raise UserError(f"{path} begins with {start[:16]!r}: neither a tar nor a zip file, or truncated; fetch it again")


def _list_folder(root: Path, number: int) -> Iterator[Place]:
    todo, seen = [""], {(root.stat().st_dev, root.stat().st_ino)}
    while todo:
        folder = todo.pop()
        below = []
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            name = f"{folder}{entry.name}"
            try:
                info = entry.stat()
            except OSError:
                continue  # a link that leads nowhere; who wants this file will find it missing
            if stat.S_ISDIR(info.st_mode) and not entry.name.startswith("."):
                if (info.st_dev, info.st_ino) not in seen:
                    seen.add((info.st_dev, info.st_ino))
                    below.append(f"{name}/")
            elif stat.S_ISREG(info.st_mode) and not name.endswith(_ARCHIVES):
                yield Place(number, name, 0, info.st_size, STORED)
        todo += reversed(below)


def _list_tar(path: Path, number: int) -> Iterator[Place]:
    """Its plain files; links, devices and sparse files are passed over, and any name will do, for none is opened."""
    position, extension = 0, tar_headers.Extension()
    with open(path, "rb") as file:
        handle, total = file.fileno(), os.fstat(file.fileno()).st_size
        while any(os.pread(handle, BLOCK, position)):
            found = tar_headers.read_header(handle, position)
            if found.kind in tar_headers.EXTENSIONS:
                found.check_within(total)
                extension = tar_headers.extend(extension, found, position, handle)
            else:
                found, extension = extension.applied(found), tar_headers.Extension()
                found.check_within(total)
                if found.kind in tar_headers.FILE:
                    yield Place(number, found.name, found.data, found.size, STORED)
            position = found.end
        # One that was cut between two members has no end mark.
        if total < position + 2 * BLOCK or any(os.pread(handle, 2 * BLOCK, position)):
            raise UserError(f"{path}: truncated (no end mark); fetch this file again")


def _list_zip(path: Path, number: int) -> Iterator[Place]:
    packings = {zipfile.ZIP_STORED: STORED, zipfile.ZIP_DEFLATED: DEFLATED}
    total = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not 0 <= info.header_offset <= info.header_offset + info.compress_size <= total:
                raise zipfile.BadZipFile(f"{info.filename[:80]!r} lies outside of it")
            if not info.is_dir():
                packing = UNKNOWN if info.flag_bits & 1 else packings.get(info.compress_type, UNKNOWN)
                yield Place(number, info.filename, info.header_offset, info.compress_size, packing)


class StoreReader:
    """Reads files by place; opens what it needs, and may be pickled and forked."""

    def __init__(self, stores: Sequence[Store]) -> None:
        """Takes the stores in the order that places number them in."""
        self.stores = list(stores)
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind."""
        return {"stores": self.stores, "_handles": OrderedDict()}

    def __del__(self) -> None:
        """Closes what is open."""
        for handle in self._handles.values():
            os.close(handle)

    def read(self, place: Place) -> bytes:
        """A file's bytes.

        Raises:
            NoPicture: it is gone, too large, or cannot be unpacked.
        """
        if place.size > MAX_FILE_BYTES:
            raise NoPicture("picture file too large")
        store = self.stores[place.store]
        try:
            if store.kind == "folder":
                return read_file(f"{store.path}/{place.name}", MAX_FILE_BYTES)
            if store.kind == "tar":
                return self._bytes(place, place.offset, place.size)
            return self._unzip(place)
        except OSError as error:
            raise NoPicture("picture cannot be read") from error

    def _bytes(self, place: Place, offset: int, size: int) -> bytes:
        data = os.pread(self._handle(place.store), size, offset)
        if len(data) != size:
            raise NoPicture("picture cannot be read")
        return data

    def _handle(self, number: int) -> int:
        if number not in self._handles:
            self._handles[number] = os.open(self.stores[number].path, os.O_RDONLY)
            if len(self._handles) > _HANDLES:
                os.close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(number)
        return self._handles[number]

    def _unzip(self, place: Place) -> bytes:
        """The sizes come from the zip's directory: the header before the file need not have them.

        Raises:
            NoPicture: it is damaged, or packed in a way that is not read.
        """
        header = self._bytes(place, place.offset, _LOCAL_HEADER.size)
        mark, _, flags, _, _, _, checksum, _, _, name, extra = _LOCAL_HEADER.unpack(header)
        if mark != b"PK\x03\x04" or place.packing == UNKNOWN:
            raise NoPicture("picture cannot be unpacked")
        data = self._bytes(place, place.offset + _LOCAL_HEADER.size + name + extra, place.size)
        whole = data if place.packing == STORED else self._inflated(data)
        if not flags & _CHECKSUM_BEHIND and zlib.crc32(whole) != checksum:
            raise NoPicture("picture cannot be unpacked")
        return whole

    @staticmethod
    def _inflated(data: bytes) -> bytes:
        unpacker = zlib.decompressobj(-15)
        try:
            whole = unpacker.decompress(data, MAX_FILE_BYTES)
        except zlib.error as error:
            raise NoPicture("picture cannot be unpacked") from error
        if not unpacker.eof:
            raise NoPicture("picture file too large" if unpacker.unconsumed_tail else "picture cannot be unpacked")
        return whole


def is_picture_name(name: str) -> bool:
    """Whether a name ends as pictures do."""
    return name.rpartition(".")[2].lower() in PICTURE_ENDINGS
