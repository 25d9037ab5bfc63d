"""Judges one sample of a shard: whether it can be used, and whether it is whole and right."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_prep.checksums import of_members
from data_prep.faults import FaultKind
from data_prep.images import BadImage, ImageInfo, inspect_image
from data_prep.index import Row
from data_prep.tars import Member, is_image, read_chunks, read_member
from data_prep.texts import BadText, read_fields

MAX_PICTURE_BYTES = 256 << 20
MAX_TEXT_BYTES = 16 << 20
TEXT_MEMBERS = frozenset({"txt", "json"})
_IMAGE_NAMES = ([""], ["left", "right"])
# What img2dataset's own samples say, and ours made of them do not; its sha256 is of the picture before it was resized.
_IMG2DATASET = frozenset({"status", "error_message"})

UNKNOWN = "was changed: its checksum is none of those that samples.npy has for this shard"

Reason = tuple[FaultKind, str]


@dataclass(frozen=True, kw_only=True)
class Checks:
    """How closely to look.

    Attributes:
        pictures: Whether to read the pictures, and compare their checksums with those in the JSON.
        decode: Whether to decode them in full.
        wanted: Text members that every sample must have.
        checksums: Whether to make those of the samples, which takes reading all of them.
        known: The checksums that samples may have, where another one is a fault.
    """

    pictures: bool = True
    decode: bool = True
    wanted: frozenset[str] = TEXT_MEMBERS
    checksums: bool = True
    known: frozenset[int] | None = None


@dataclass(kw_only=True)
class SampleCheck:
    """A sample and what was found.

    Attributes:
        key: Its name.
        members: Its files, in order.
        reasons: What is wrong with it.
        unusable: Why no reader of ours could use it (it has no row in the index then), or None.
        captions: How many it has.
        statements: How many it has.
        checksum: Of its members; 0 where none was asked for.
    """

    key: str
    members: list[Member]
    reasons: list[Reason] = field(default_factory=list)
    unusable: Reason | None = None
    captions: int = 0
    statements: int = 0
    checksum: int = 0

    @property
    def begin(self) -> int:
        """Its first byte in the tar."""
        return self.members[0].begin

    @property
    def end(self) -> int:
        """The byte behind its last one, padding included."""
        return self.members[-1].end

    @property
    def row(self) -> Row:
        """Its row of samples.npy."""
        return self.begin, self.end, self.captions, self.statements, self.checksum


def check_sample(key: str, members: list[Member], file: BinaryIO, checks: Checks) -> SampleCheck:
    """Reads a sample's members and judges them; reads no more than the limits above at a time."""
    check = SampleCheck(key=key, members=members)
    pictures = [member for member in members if is_image(member)]
    by_extension = {member.extension: member for member in members}
    too_large = _too_large(members)
    if too_large is not None:
        check.unusable = "missing member", too_large
    elif sorted(member.extension.rpartition(".")[0] for member in pictures) not in _IMAGE_NAMES:
        check.unusable = "missing member", _picture_reason(len(pictures))
        pictures = []  # thousands may lie under one key, the frames of a film for example
    texts = {name: read_member(file, by_extension[name]) for name in TEXT_MEMBERS & set(by_extension) if not too_large}
    fields: dict[str, Any] = {}
    try:
        fields = read_fields(texts)
        check.captions, check.statements = len(fields["captions"]), len(fields.get("statements", ()))
    except BadText as error:
        check.unusable = check.unusable or ("bad json", str(error))
        check.reasons.append(("bad json", str(error)))
    if check.unusable and check.unusable not in check.reasons:
        check.reasons.insert(0, check.unusable)
    if checks.pictures and pictures and not too_large:
        check.reasons += _check_pictures([read_member(file, member) for member in pictures], fields, checks)
    missing = sorted(checks.wanted - set(by_extension), reverse=True)
    check.reasons += [("missing member", f"has no .{name} member") for name in missing]
    check.reasons += _check_caption(texts, fields)
    if checks.checksums:
        check.checksum = of_members((member.name, read_chunks(file, member)) for member in members)
        if not check.reasons and checks.known is not None and check.checksum not in checks.known:
            check.reasons.append(("checksum", UNKNOWN))
    return check


def _too_large(members: list[Member]) -> str | None:
    for member in members:
        if is_image(member) and member.size > MAX_PICTURE_BYTES:
            return f"a picture has more than {MAX_PICTURE_BYTES >> 20} MiB"
        if member.extension in TEXT_MEMBERS and member.size > MAX_TEXT_BYTES:
            return f"a text has more than {MAX_TEXT_BYTES >> 20} MiB"
    return None


def _picture_reason(pictures: int) -> str:
    return "not one picture, or a left and a right one" if pictures else "no picture"


def _check_pictures(pictures: list[bytes], fields: Mapping[str, Any], checks: Checks) -> Iterator[Reason]:
    infos = []
    for picture in pictures if checks.decode else ():
        try:
            infos.append(inspect_image(picture))
        except BadImage as error:
            yield "bad image", str(error)
    if set(fields) >= _IMG2DATASET:
        return
    if "sha256" in fields and fields["sha256"] != hashlib.sha256(b"".join(pictures)).hexdigest():
        yield "checksum", "its picture has another checksum than its JSON says"
    elif infos and len(infos) == len(pictures):
        yield from _check_size(infos[0], fields)


def _check_size(info: ImageInfo, fields: Mapping[str, Any]) -> Iterator[Reason]:
    stated = fields.get("width", info.width), fields.get("height", info.height)
    if stated == (info.width, info.height):
        return
    if not all(type(side) is int and abs(side) < 1 << 63 for side in stated):
        yield "bad json", "its JSON says no width and height in pixels"  # but whatever else, of any length
    else:
        yield (
            "bad json",
            f"its JSON says {stated[0]} x {stated[1]} pixels, its picture has {info.width} x {info.height}",
        )


def _check_caption(texts: Mapping[str, bytes], fields: Mapping[str, Any]) -> Iterator[Reason]:
    """Ours has its first caption in the .txt too; other tools' JSON has no list of captions."""
    if "txt" in texts and "json" in texts and fields and "captions" in json.loads(texts["json"]):
        first = fields["captions"][0] if fields["captions"] else ""
        if texts["txt"] != first.encode():
            yield "caption", "its .txt is not its first caption"
