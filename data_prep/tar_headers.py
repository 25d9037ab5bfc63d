"""One header of a tar file, read strictly: nothing is allocated that the file does not hold."""

import os
import re
from dataclasses import dataclass, replace

BLOCK = 512
MAGIC = b"ustar"
LONG_NAME, PAX, PAX_GLOBAL, LONG_LINK = b"L", b"x", b"g", b"K"
EXTENSIONS = frozenset({LONG_NAME, PAX, PAX_GLOBAL, LONG_LINK})
FILE, FOLDER, SPARSE = frozenset({b"0", b"\0", b"7"}), b"5", b"S"
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", FOLDER, b"6"})
_LONGEST_EXTENSION = 1 << 16
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=")
_CHECKSUM = slice(148, 156)


class BadHeader(Exception):
    """Bytes that are no header of a tar, or one that cannot be followed; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A member's header: its name, its type's letter, where its bytes begin and how many they are."""

    name: str
    kind: bytes
    data: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.data if self.kind in _WITHOUT_DATA else self.data - -self.size // BLOCK * BLOCK

    def check_within(self, total: int) -> None:
        """Refuses a member whose bytes go on behind the end of the file.

        Raises:
            BadHeader: Naming it.
        """
        if self.kind not in _WITHOUT_DATA and self.data + self.size > total:
            raise BadHeader(f"member {self.name!r} is longer than the file")


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """What headers for long names and PAX records say about the member that follows.

    `begin` is where the first of them lies, `kinds` has the letter of each.
    """

    begin: int | None = None
    kinds: bytes = b""
    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def applied(self, header: Header) -> Header:
        """The member's header with its real name, size and type."""
        kind = SPARSE if self.sparse and header.kind in FILE else header.kind
        size = header.size if self.size is None else self.size
        return replace(header, name=header.name if self.name is None else self.name, size=size, kind=kind)


def read_header(handle: int, position: int) -> Header:
    """Reads the header at a position of an opened file.

    Raises:
        BadHeader: where there is none.
    """
    block = os.pread(handle, BLOCK, position)
    if len(block) < BLOCK:
        raise BadHeader("ends within a header")
    if not has_checksum(block):
        raise BadHeader("no header with a right checksum")
    # GNU's old headers have times where POSIX has the beginning of a long name.
    prefix = _text(block[345:500]) if block[257:263] == MAGIC + b"\0" else ""
    name = _text(block[:100])
    kind = block[156:157]
    return Header(
        name=f"{prefix}/{name}" if prefix else name,
        kind=FOLDER if kind == b"\0" and name.endswith("/") else kind,
        data=position + BLOCK,
        size=_number(block[124:136]),
    )


def has_checksum(block: bytes) -> bool:
    """Whether the checksum in a block is that of its bytes, with its own field taken as eight spaces."""
    match = _OCTAL.fullmatch(block[_CHECKSUM])
    if match is None or not match[1]:
        return False
    rest = block[:148] + block[156:]
    # Old programs summed signed bytes.
    return int(match[1], 8) - 256 in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def extend(known: Extension, header: Header, position: int, handle: int) -> Extension:
    """Adds what an extension header says.

    Raises:
        BadHeader: where it is unreasonably long or not as the format wants it.
    """
    if header.size > _LONGEST_EXTENSION:
        raise BadHeader(f"a header extension of {header.size} bytes")
    if header.kind in known.kinds:
        raise BadHeader(f"two header extensions of type {header.kind!r} for one member")
    known = replace(known, begin=position if known.begin is None else known.begin, kinds=known.kinds + header.kind)
    data = os.pread(handle, header.size, header.data)
    if header.kind == LONG_NAME:
        return replace(known, name=_text(data))
    if header.kind == LONG_LINK:
        return known
    records = _records(data)
    if header.kind == PAX_GLOBAL:
        if {"path", "size"} & set(records):
            raise BadHeader("a name or size for all members that follow")
        return known
    size = records.get("size")
    if size is not None and not (size.isdecimal() and len(size) < 20):
        raise BadHeader(f"a size of {size[:20]!r}")
    return replace(
        known,
        name=records.get("path", known.name),
        size=known.size if size is None else int(size),
        sparse=known.sparse or any(key.startswith("GNU.sparse.") for key in records),
    )


def _records(data: bytes) -> dict[str, str]:
    """The records of a PAX header, each `LENGTH KEY=VALUE` and a newline."""
    records, position = {}, 0
    while position < len(data) and data[position]:
        match = _RECORD.match(data, position, position + 300)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise BadHeader("broken PAX records")
        records[match[2].decode(errors="replace")] = data[match.end() : end - 1].decode(errors="surrogateescape")
        position = end
    return records


def _number(field: bytes) -> int:
    """A size: octal digits, or for large ones the bytes of the number after a set bit."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise BadHeader("a negative size")
        return int.from_bytes(field[1:])
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise BadHeader("a size that is no number")
    return int(match[1] or b"0", 8)


def _text(field: bytes) -> str:
    # What is no UTF-8 becomes surrogates, which are not printable and so refused as a name.
    return field.partition(b"\0")[0].decode(errors="surrogateescape")
