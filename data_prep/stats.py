"""Counts what lies in shards: sources, captions, words, sizes of pictures; headers are read, pictures not decoded."""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from data_prep.afar import at_hand
from data_prep.make_index import tars_of
from data_prep.parallel import cores, map_in_order
from data_prep.sample_check import MAX_PICTURE_BYTES, Checks, SampleCheck
from data_prep.shard_check import WORTH_A_POOL, Progress, samples_of
from data_prep.tars import Damage, Member, is_image, read_member
from data_prep.texts import read_fields

COVERAGES = (1_000, 5_000, 10_000, 30_000)
"""Sizes of a vocabulary whose share of all words is told."""

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_MOST_WORDS = 1_000_000
_MOST_SOURCES = 1000
_SOURCE_LENGTH = 100
OTHERS = "others"
"""Stands for the sources that are too many to be named: some shards say where each single picture is from."""

_HEADER_BYTES = 1 << 16
_LARGEST_SIDE = 1_000_000


@dataclass(kw_only=True)
class Counts:
    """What was counted; two of them add up. Each distribution is a number of occurrences by value.

    Attributes:
        shards: Tars.
        samples: Samples that can be used.
        bytes: Of tars, pictures and texts.
        unusable: Samples, and stretches of a tar, that can not be used, by reason.
        sources: Samples by the data set they come from; of very many the rarest are counted as "others".
        formats: Pictures by extension.
        statements: True or false of pictures.
        questions: About pictures.
        captions: Captions a sample.
        words: Words a caption.
        characters: Characters a caption.
        vocabulary: Words in lower case.
        pruned: Whether rare words were dropped from the vocabulary, for it was too large.
        widths: Of pictures, in pixels.
        heights: Of pictures, in pixels.
        short_sides: Of pictures, in pixels.
        aspects: Width over height, rounded to hundredths.
    """

    shards: int = 0
    samples: int = 0
    bytes: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    statements: int = 0
    questions: int = 0
    captions: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    vocabulary: Counter[str] = field(default_factory=Counter)
    pruned: bool = False
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    short_sides: Counter[int] = field(default_factory=Counter)
    aspects: Counter[float] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Adds another count to this one."""
        for name in (each.name for each in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(more)
            else:
                setattr(self, name, mine + more if isinstance(mine, int) and name != "pruned" else mine or more)
        self.prune()

    def prune(self) -> None:
        """Drops the rarest words of a vocabulary, and the names of sources, that would take too much memory."""
        if len(self.sources) > _MOST_SOURCES:
            others = self.sources.pop(OTHERS, 0)
            kept = Counter(dict(self.sources.most_common(_MOST_SOURCES // 2)))
            kept[OTHERS] = others + self.sources.total() - kept.total()
            self.sources = kept
        least = 2
        while len(self.vocabulary) > _MOST_WORDS:
            self.pruned = True
            self.vocabulary = Counter({word: count for word, count in self.vocabulary.items() if count >= least})
            least += 1


def count_folder(folder: Path, workers: int | None = None, progress: Progress | None = None) -> Counts:
    """Counts what lies in the tars of a folder, damaged ones as far as they can be read.

    Args:
        folder: Of a split; it needs no index.
        workers: Processes; by default one a core.
        progress: Is told bytes done and bytes in all.
    """
    tars = tars_of(folder)
    sizes = [path.stat().st_size for path in tars]
    workers = workers or (cores() if sum(sizes) >= WORTH_A_POOL else 1)
    counts, done = Counts(), 0
    for size, part in zip(sizes, map_in_order(_count_shard, tars, min(workers, len(tars))), strict=True):
        counts.add(part)
        done += size
        if progress is not None:
            progress(done, sum(sizes))
    return counts


def _count_shard(path: Path) -> Counts:
    counts = Counts(shards=1)
    counts.bytes["shards"] = path.stat().st_size

    def on_damage(damage: Damage) -> None:
        counts.unusable[damage.kind] += 1

    checks = Checks(pictures=False, decode=False, wanted=frozenset(), checksums=False)
    with at_hand(path), open(path, "rb") as file:
        for check in samples_of(file, checks, on_damage):
            if check.unusable is None:
                _count_sample(check, file, counts)
            else:
                counts.unusable[check.unusable[1]] += 1
    return counts


def _count_sample(check: SampleCheck, file: BinaryIO, counts: Counts) -> None:
    texts = {m.extension: read_member(file, m) for m in check.members if m.extension in ("txt", "json")}
    told = read_fields(texts)
    counts.samples += 1
    counts.statements += check.statements
    counts.questions += _listed(told.get("questions"))
    counts.sources[_source(told)] += 1
    counts.bytes["texts"] += sum(map(len, texts.values()))
    counts.captions[check.captions] += 1
    for caption in told["captions"]:
        words = _WORD.findall(caption.lower())
        counts.words[len(words)] += 1
        counts.characters[len(caption)] += 1
        counts.vocabulary.update(words)
    counts.prune()
    pictures = [member for member in check.members if is_image(member)]
    for picture in pictures:
        counts.bytes["pictures"] += picture.size
        counts.formats[picture.extension.rpartition(".")[2]] += 1
        size = _stated_size(told) if len(pictures) == 1 else None
        _count_size(size or _header_size(file, picture), counts)


def _listed(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def _source(told: Mapping[str, Any]) -> str:
    if isinstance(told.get("source"), str):
        return str(told["source"])[:_SOURCE_LENGTH]
    return "img2dataset" if {"status", "url"} <= set(told) else "unknown"


def _count_size(size: tuple[int, int] | None, counts: Counts) -> None:
    if size is None:
        counts.unusable["size cannot be read"] += 1
        return
    width, height = size
    counts.widths[width] += 1
    counts.heights[height] += 1
    counts.short_sides[min(width, height)] += 1
    counts.aspects[round(width / height, 2)] += 1


def _stated_size(told: Mapping[str, Any]) -> tuple[int, int] | None:
    sides = [
        side for side in (told.get("width"), told.get("height")) if type(side) is int and 0 < side <= _LARGEST_SIDE
    ]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _header_size(file: BinaryIO, member: Member) -> tuple[int, int] | None:
    """Width and height by the picture's header, which mostly lies at its beginning."""
    for length in sorted({min(member.size, _HEADER_BYTES), min(member.size, MAX_PICTURE_BYTES)}):
        data = os.pread(file.fileno(), length, member.data)
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
                return image.size
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
            continue
    return None


def describe(counts: Counts) -> dict[str, Any]:
    """The counts as JSON values: totals, and the mean and percentiles of each distribution."""
    running = counts.vocabulary.total()
    return {
        "shards": counts.shards,
        "samples": counts.samples,
        "bytes": {name: counts.bytes[name] for name in ("shards", "pictures", "texts")},
        "unusable": dict(sorted(counts.unusable.items())),
        "sources": dict(counts.sources.most_common()),
        "formats": dict(counts.formats.most_common()),
        "statements": counts.statements,
        "questions": counts.questions,
        "captions": sum(number * times for number, times in counts.captions.items()),
        "captions_per_sample": distribution(counts.captions),
        "caption_words": distribution(counts.words),
        "caption_characters": distribution(counts.characters),
        "vocabulary": {
            "running": running,
            "distinct": len(counts.vocabulary),
            "once": sum(times == 1 for times in counts.vocabulary.values()),
            "complete": not counts.pruned,
            "coverage": _coverage(counts.vocabulary, running),
        },
        "width": distribution(counts.widths),
        "height": distribution(counts.heights),
        "short_side": distribution(counts.short_sides),
        "aspect": distribution(counts.aspects),
    }


def _coverage(vocabulary: Counter[str], running: int) -> dict[str, float]:
    """The share of all words that the most frequent ones make up."""
    times = sorted(vocabulary.values(), reverse=True)
    return {str(size): round(sum(times[:size]) / running, 4) for size in COVERAGES} if running else {}


def distribution(counts: Mapping[int, int] | Mapping[float, int]) -> dict[str, float] | None:
    """Mean, least, percentiles and greatest of values that occur so many times; None where there are none."""
    total = sum(counts.values())
    if not total:
        return None
    ordered = sorted(counts.items())
    mean = sum(value * times for value, times in ordered) / total
    percentiles = {f"p{percent}": value for percent, value in zip(PERCENTILES, _ranked(ordered, total), strict=True)}
    return {"mean": round(mean, 2), "min": ordered[0][0], **percentiles, "max": ordered[-1][0]}


def _ranked(ordered: Sequence[tuple[float, int]], total: int) -> Iterator[float]:
    """The value below or at which each percentile of the occurrences lies."""
    values = iter(ordered)
    value, seen = next(values)
    for percent in PERCENTILES:
        while 100 * seen < percent * total:
            value, times = next(values)
            seen += times
        yield value
