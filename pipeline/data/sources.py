"""The sources of a mix: what their weights mean, and what each of them came to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.data.mix import quotas
from pipeline.data.order import Unit
from pipeline.data.sample import TextKind
from pipeline.data.shards import ShardFolder

Meaning = Literal["weights", "epochs"]


def weigh_sources(
    sources: Sequence[tuple[Path, float]], meaning: Meaning, text: TextKind, unit: Unit
) -> list[tuple[Path, float]]:
    """The weight of each source in a batch.

    Args:
        sources: Split folders, each with a number above 0.
        meaning: "weights" are such weights; "epochs" say how often a source is visited in the time in which one with
            1 is visited once, so that they count times its size.
        text: What goes with an image.
        unit: What a source is counted in.

    Raises:
        UserError: a folder cannot be read.
    """
    if meaning == "weights":
        return list(sources)
    return [(path, number * ShardFolder(path).units(text, unit).total) for path, number in sources]


def describe_mix(
    names: Sequence[str], sources: Sequence[tuple[Path, float]], samples: int, text: TextKind, unit: Unit
) -> dict[str, dict[str, float]]:
    """By name: units of a source, its share of every batch, and how often its units were visited in so many samples."""
    quota = quotas([weight for _, weight in sources])
    totals = [ShardFolder(path).units(text, unit).total for path, _ in sources]
    shares = [part / sum(quota) for part in quota]
    return {
        name: {"units": total, "share": round(share, 4), "epochs": round(share * samples / total, 2)}
        for name, total, share in zip(names, totals, shares, strict=True)
    }
