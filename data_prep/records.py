"""One sample on its way from a source into a shard, and the members it becomes."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data_prep.images import ImageInfo, inspect_image

# A dot would end the key for every WebDataset reader; 100 characters are what a ustar name holds.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_IMAGE_NAMES = ({""}, {"left", "right"})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A picture, or a pair of pictures, with everything said about it.

    Attributes:
        key: Unique in its split; letters, digits, `_` and `-` only.
        source: The data set it comes from.
        id: Its name in that data set.
        images: Encoded pictures by name: {"": bytes}, or {"left": bytes, "right": bytes} for a pair.
        captions: Sentences that are true of the picture; may be empty.
        statements: {"text", "label"} and further fields, true or false of the picture.
        questions: {"question", "answer"} and further fields; without "answer" where nobody knows it.
        group: Samples that stand or fall together (the resampling unit of intervals), where there are any.
        fields: Further fields of the source, put into the JSON member as they are.
    """

    key: str
    source: str
    id: str
    images: Mapping[str, bytes]
    captions: Sequence[str] = ()
    statements: Sequence[Mapping[str, Any]] = ()
    questions: Sequence[Mapping[str, Any]] = ()
    group: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses keys that readers would split, and unknown sets of pictures."""
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"key={self.key!r} must be 1 to 80 letters, digits, '_' or '-'")
        if set(self.images) not in _IMAGE_NAMES:
            raise ValueError(f"images={sorted(self.images)} must be named '' alone, or 'left' and 'right'")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that a source could not give, with the reason that it is counted under."""

    key: str
    reason: str


class Split(Protocol):
    """The samples of one split by position; picklable, so that any process can make any of them."""

    def __len__(self) -> int:
        """How many samples are asked for."""
        ...

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        """Gives the samples of the positions start to stop - 1, one for each, in order."""
        ...


def members_of(record: Record) -> list[tuple[str, bytes]]:
    """Turns a record into its (name, bytes) members: pictures, first caption, JSON.

    A sample without captions (a statement that is false) has an empty KEY.txt, so that no reader takes
    something untrue for a caption.

    Raises:
        BadImage: where a picture cannot be used.
    """
    infos = {name: inspect_image(data) for name, data in record.images.items()}
    members = []
    for name, data in record.images.items():
        middle = f".{name}" if name else ""
        members.append((f"{record.key}{middle}.{infos[name].extension}", data))
    caption = record.captions[0] if record.captions else ""
    members.append((f"{record.key}.txt", caption.encode()))
    text = json.dumps(_json_of(record, infos), ensure_ascii=False, allow_nan=False)
    members.append((f"{record.key}.json", text.encode()))
    return members


def _json_of(record: Record, infos: Mapping[str, ImageInfo]) -> dict[str, Any]:
    """The JSON member; for a pair, size is the left picture's and sha256 is of left bytes + right bytes."""
    first = next(iter(infos.values()))
    value: dict[str, Any] = {
        "key": record.key,
        "source": record.source,
        "id": record.id,
        "width": first.width,
        "height": first.height,
        "sha256": hashlib.sha256(b"".join(record.images.values())).hexdigest(),
        "captions": list(record.captions),
    }
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
