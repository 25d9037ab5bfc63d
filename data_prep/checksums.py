"""The checksum of a sample: says which samples of a damaged shard are as they were."""

import zlib
from collections.abc import Iterable


def of_members(members: Iterable[tuple[str, Iterable[bytes | memoryview]]]) -> int:
    """The CRC-32 of a sample's members: of each its name, a zero byte and its bytes, one after the other.

    Headers and padding are not in it, so that it stays as it is when a shard is written anew or by another tool, and
    wherever in a shard the sample lies. It is no protection against people: a shard's SHA-256 is.

    Args:
        members: Name and bytes, in pieces, of each member in the order of the tar.
    """
    value = 0
    for name, pieces in members:
        value = zlib.crc32(name.encode(errors="surrogateescape") + b"\0", value)
        for piece in pieces:
            value = zlib.crc32(piece, value)
    return value
