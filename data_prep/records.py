"""One sample on its way from a source into a shard."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

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


@runtime_checkable
class PickingSplit(Split, Protocol):
    """A split that can give samples out of order better than one by one."""

    def pick(self, positions: Sequence[int]) -> Iterator[Record | Skipped]:
        """Gives the samples of these positions, one for each, in their order."""
        ...


def records_at(split: Split, positions: NDArray[np.int64]) -> Iterator[Record | Skipped]:
    """Gives the samples of these positions, one for each, in their order.

    Raises:
        ValueError: where the split gives more or fewer.
    """
    given = 0
    for record in _picked(split, positions):
        given += 1
        yield record
    if given != len(positions):
        raise ValueError(f"{type(split).__name__} gave {given} records for {len(positions)} positions")


def _picked(split: Split, positions: NDArray[np.int64]) -> Iterator[Record | Skipped]:
    if len(positions) and (np.diff(positions) == 1).all():
        return split.records(int(positions[0]), int(positions[-1]) + 1)
    if isinstance(split, PickingSplit):
        return split.pick(positions.tolist())
    return itertools.chain.from_iterable(split.records(at, at + 1) for at in positions.tolist())
