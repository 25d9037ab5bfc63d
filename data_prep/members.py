"""A cleaned sample as the bytes it takes in a shard: pictures, first caption, JSON, each with its tar header."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.clean import Picture
from data_prep.records import Record
from data_prep.tars import header, padding

# Made once, for json.dumps makes an encoder at every call that asks for something unusual.
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the tar takes.

    Attributes:
        key: The sample's key.
        blocks: Headers, bytes and padding of its members, whole blocks of 512 bytes together.
        captions: How many captions it has.
        statements: How many statements it has.
    """

    key: str
    blocks: bytes
    captions: int
    statements: int


@dataclass(frozen=True, kw_only=True)
class Original:
    """A picture before it was made smaller."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A picture as it is stored, the SHA-256 of these bytes, and what it was before where it was changed."""

    picture: Picture
    sha256: str
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
    for name, stored in pictures.items():
        middle = f".{name}" if name else ""
        _add(parts, f"{record.key}{middle}.{stored.picture.extension}", stored.picture.data)
    caption = record.captions[0] if record.captions else ""
    _add(parts, f"{record.key}.txt", _encoded(caption))
    _add(parts, f"{record.key}.json", _encoded(_encode_json(_json_of(record, pictures, changed))))
    return Sample(
        key=record.key, blocks=b"".join(parts), captions=len(record.captions), statements=len(record.statements)
    )


def _add(parts: list[bytes], name: str, data: bytes) -> None:
    parts += (header(name, len(data)), data, padding(len(data)))


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
        "sha256": joined_sha256(pictures),
        "captions": list(record.captions),
    }
    originals = {name or "image": vars(s.original) for name, s in pictures.items() if s.original is not None}
    if originals:
        value |= {"changed": changed, "originals": originals}
    if record.statements:
        value["statements"] = [dict(statement) for statement in record.statements]
    if record.questions:
        value["questions"] = [dict(question) for question in record.questions]
    if record.group is not None:
        value["group"] = record.group
    clash = set(value) & set(record.fields)
    if clash:
        raise ValueError(f"fields={sorted(clash)} of the source are names that every sample already has")
    return value | dict(record.fields)


def joined_sha256(pictures: Mapping[str, Stored]) -> str:
    """The SHA-256 of all pictures' bytes, one after the other; a single one is not hashed again."""
    if len(pictures) == 1:
        return next(iter(pictures.values())).sha256
    digest = hashlib.sha256()
    for stored in pictures.values():
        digest.update(stored.picture.data)
    return digest.hexdigest()
