"""A cleaned sample as the bytes it takes in a shard: pictures, first caption, JSON, each with its tar header."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_prep.checksums import of_members
from data_prep.clean import Picture
from data_prep.records import Record
from data_prep.tars import header, padding

FIELDS = frozenset({"key", "source", "id", "width", "height", "sha256", "captions", "statements", "questions", "group"})
"""What the writer puts into a sample's JSON; a source's own fields have other names."""

# Made once, for json.dumps makes an encoder at every call that asks for something unusual.
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Sample(NamedTuple):
    """What the tar takes.

    Attributes:
        key: Its name.
        parts: Headers, bytes and padding of its members, one after the other.
        size: Bytes of all parts, a multiple of 512.
        captions: How many captions it has.
        statements: How many statements it has.
        checksum: As `checksums.of_members` makes it.
    """

    key: str
    parts: list[bytes]
    size: int
    captions: int
    statements: int
    checksum: int


class Original(NamedTuple):
    """A picture before it was made smaller."""

    sha256: str
    width: int
    height: int


class Stored(NamedTuple):
    """A picture as it is stored, the SHA-256 of these bytes if wanted, and what it was before where it was changed."""

    picture: Picture
    sha256: str | None
    original: Original | None = None


def sample_of(record: Record, pictures: Mapping[str, Stored], changed: str) -> Sample:
    """Puts a sample's members together.

    A sample without captions (a statement that is false) has an empty KEY.txt, so that no reader takes
    something untrue for a caption.

    Args:
        record: Its texts.
        pictures: Its pictures by name, as in `Record.images`.
        changed: What is done to pictures that have an original, in words for the JSON.
    """
    parts: list[bytes] = []
    members: list[tuple[str, list[bytes]]] = []
    for name, stored in pictures.items():
        extension = stored.picture.extension
        member = f"{record.key}.{name}.{extension}" if name else f"{record.key}.{extension}"
        # Pictures are not copied; what is small goes together.
        parts += (header(member, len(stored.picture.data)), stored.picture.data, padding(len(stored.picture.data)))
        members.append((member, [stored.picture.data]))
    caption = _encoded(record.captions[0]) if record.captions else b""
    text = _encoded(_encode_json(_json_of(record, pictures, changed)))
    parts.append(
        b"".join(
            (
                *(header(f"{record.key}.txt", len(caption)), caption, padding(len(caption))),
                *(header(f"{record.key}.json", len(text)), text, padding(len(text))),
            )
        )
    )
    members += [(f"{record.key}.txt", [caption]), (f"{record.key}.json", [text])]
    captions, statements = len(record.captions), len(record.statements)
    return Sample(record.key, parts, sum(map(len, parts)), captions, statements, of_members(members))


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")  # JSON files can hold halves of characters, which UTF-8 cannot


def _json_of(record: Record, pictures: Mapping[str, Stored], changed: str) -> dict[str, Any]:
    """The JSON member; for a pair, size is the left picture's and sha256 is of left bytes + right bytes."""
    first = next(iter(pictures.values()))
    value: dict[str, Any] = {
        "key": record.key,
        "source": record.source,
        "id": record.id,
        "width": first.picture.width,
        "height": first.picture.height,
        **({} if first.sha256 is None else {"sha256": joined_sha256(pictures)}),
        "captions": list(record.captions),
    }
    originals = {name or "image": s.original._asdict() for name, s in pictures.items() if s.original is not None}
    if originals:
        # Of a picture that was made smaller before, what it was at first is what lists of exclusions may name.
        earlier = record.fields.get("originals")
        value |= {"changed": changed, "originals": earlier if isinstance(earlier, dict) else originals}
    if record.statements:
        value["statements"] = [dict(statement) for statement in record.statements]
    if record.questions:
        value["questions"] = [dict(question) for question in record.questions]
    if record.group is not None:
        value["group"] = record.group
    clash = FIELDS & set(record.fields)
    if clash:
        raise ValueError(f"fields={sorted(clash)} of the source are names that every sample already has")
    return value | {name: told for name, told in record.fields.items() if name not in value}


def joined_sha256(pictures: Mapping[str, Stored]) -> str:
    """The SHA-256 of all pictures' bytes, one after the other; that of a single one is not made again."""
    known = next(iter(pictures.values())).sha256
    if len(pictures) == 1 and known is not None:
        return known
    digest = hashlib.sha256()
    for stored in pictures.values():
        digest.update(stored.picture.data)
    return digest.hexdigest()
