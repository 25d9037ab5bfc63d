"""Which samples and captions are kept: each rule can be chosen, and what it drops is counted by reason."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from data_prep.captions import in_one_line, without_control, without_markup
from data_prep.errors import UserError
from data_prep.exclusion import Exclusions, read_exclusions
from data_prep.images import MAX_PIXELS, MOST_PIXELS, decode_in_full, measure_image
from data_prep.reasons import LeftOut
from data_prep.records import Record

# Fields of the sources with a value for each caption, in the captions' order.
_OF_CAPTIONS = ("caption_ids", "sentids", "regions")


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """What to leave out of shards: pictures that are broken or far too large, unless told otherwise; the rest if asked.

    Attributes:
        decode: Decode every picture in full to find broken ones; without it only its header is read.
        max_pixels: Most pixels of a picture; what claims more would take too much memory to decode.
        min_side: Least pixels of a picture's shorter side.
        max_aspect: Most that the longer side may be of the shorter one, such as 3.
        markup: Take HTML tags and entities out of captions.
        control: Take control and invisible characters out of captions.
        min_caption: Least characters of a caption; 1 drops empty ones.
        max_caption: Most characters of a caption; longer ones are dropped.
        duplicates: Drop pictures that are byte for byte the same as an earlier one of the split.
        exclude: Files that list ids or SHA-256s of pictures to leave out, one a line (see `trimline exclusions`).
    """

    decode: bool = True
    max_pixels: int = MAX_PIXELS
    min_side: int | None = None
    max_aspect: float | None = None
    markup: bool = False
    control: bool = False
    min_caption: int | None = None
    max_caption: int | None = None
    duplicates: bool = False
    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuses limits that nothing could pass."""
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise UserError(f"clean.max_pixels={self.max_pixels} must be from 1 to {MOST_PIXELS}; try {MAX_PIXELS}")
        for name in ("min_side", "min_caption", "max_caption"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"clean.{name}={value} must be at least 1; leave it out for no limit")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise UserError(f"clean.max_aspect={self.max_aspect} must be at least 1, the aspect of a square; try 3")
        if self.max_caption is not None and (self.min_caption or 0) > self.max_caption:
            raise UserError(
                f"clean.min_caption={self.min_caption} is above clean.max_caption={self.max_caption}; swap them"
            )


class Picture(NamedTuple):
    """A picture's bytes with what its header says."""

    data: bytes
    extension: str
    width: int
    height: int


class Dropped(Exception):
    """A sample that a rule leaves out; the message is the reason."""

    def __init__(self, reason: LeftOut) -> None:
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True)
class Cleaner:
    """A configuration with its lists of exclusions read; picklable."""

    config: CleanConfig
    excluded: Exclusions

    @classmethod
    def of(cls, config: CleanConfig) -> "Cleaner":
        """Reads the lists.

        Raises:
            UserError: where one is missing or holds no line.
        """
        return cls(config=config, excluded=read_exclusions(config.exclude))

    def screen(self, record: Record, changes: Counter[str]) -> Record:
        """Applies the rules that need no look into a picture.

        Args:
            record: As the source has it.
            changes: Counts what was done to captions, by reason.

        Raises:
            Dropped: where the sample is left out.
        """
        if self.excluded.has_id(record):
            raise Dropped(LeftOut.EXCLUDED_ID)
        return self._with_clean_captions(record, changes)

    @property
    def wants_sha256(self) -> bool:
        """Whether a rule asks for the SHA-256 of every picture."""
        return bool(self.excluded.checksums)

    def check(self, data: bytes, sha256: str | None) -> Picture:
        """Applies the rules about pictures to one.

        Args:
            data: The encoded picture.
            sha256: Of the data; may be None where no rule asks for it.

        Raises:
            Dropped: where the sample is left out.
            BadImage: where the picture cannot be used.
        """
        if sha256 is not None and self.excluded.has_checksum(sha256):
            raise Dropped(LeftOut.EXCLUDED_CHECKSUM)
        config = self.config
        extension, width, height = measure_image(data, config.max_pixels)
        short, long = sorted((width, height))
        if config.min_side is not None and short < config.min_side:
            raise Dropped(LeftOut.TOO_SMALL)
        if config.max_aspect is not None and long > config.max_aspect * short:
            raise Dropped(LeftOut.TOO_STRETCHED)
        if config.decode:
            decode_in_full(data, extension)
        return Picture(data=data, extension=extension, width=width, height=height)

    def _with_clean_captions(self, record: Record, changes: Counter[str]) -> Record:
        config = self.config
        if not (config.markup or config.control or config.min_caption or config.max_caption):
            return record
        told = [self._clean(caption, changes) for caption in record.captions]
        kept = [text for text in told if text is not None]
        lost = len(kept) < len(told) or config.min_caption
        if lost and not (kept or record.statements or record.questions):
            raise Dropped(LeftOut.NO_CAPTION)
        if kept == list(record.captions):
            return record
        return replace(record, captions=kept, fields=_beside(record.fields, [text is not None for text in told]))

    def _clean(self, caption: str, changes: Counter[str]) -> str | None:
        """The caption as it is kept, or None."""
        text = caption
        for wanted, clean, reason in (
            (self.config.markup, without_markup, "markup removed"),
            (self.config.control, without_control, "control characters removed"),
        ):
            if wanted and (cleaner := clean(text)) != text:
                changes[reason] += 1
                text = in_one_line(cleaner)
        length = len(text.strip())
        if self.config.min_caption is not None and length < self.config.min_caption:
            changes["empty" if not length else "too short"] += 1
            return None
        if self.config.max_caption is not None and length > self.config.max_caption:
            changes["too long"] += 1
            return None
        return text


def _beside(fields: Mapping[str, Any], kept: Sequence[bool]) -> dict[str, Any]:
    """The fields, of which those with a value for each caption keep the values of the captions that are kept."""
    chosen = {
        name: list(itertools.compress(fields[name], kept))
        for name in _OF_CAPTIONS
        if isinstance(fields.get(name), list) and len(fields[name]) == len(kept)
    }
    return dict(fields) | chosen
