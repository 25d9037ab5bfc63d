"""What the evaluation of a task gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.measure.bootstrap import joint_interval
from pipeline.measure.outcomes import Outcomes
from pipeline.metrics import tasks

Values = tuple[Sequence[float], Sequence[str]]
"""A number for each item, and what each item is resampled with."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score in percent with its 95% interval by resampling pictures.

    Attributes:
        metric: Its name.
        value: The score.
        low: The interval from here
        high: to here.
    """

    metric: str
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, score: tasks.Score, what: str = "") -> "Score":
        """A task's; `what` says of which part of the split, such as a domain."""
        return cls(metric=f"{score.metric} {what}".strip(), value=score.value, low=score.low, high=score.high)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model's scores on a split, the same on every rank.

    Attributes:
        scores: In the order of the table.
        gmacs: Billions of multiply-accumulates of each instance.
        samples: Images or statements that were evaluated.
        skipped: Those that could not be used.
        more: What the task says besides, such as its classes.
        write: Writes what the model said as the task's server takes it; None where there is none.
        outcomes: What the scores are means of, where that is known by name.
        digest: Tells the instances of this data from those of other; see `pipeline.measure.outcomes.digest_of`.
        whole: Whether all of the split was to be used.
        left_out: Samples that were left out when the split was written.
    """

    scores: list[Score]
    gmacs: list[float]
    samples: int
    skipped: int
    more: dict[str, Any]
    write: Callable[[Path], None] | None = None
    outcomes: Sequence[Outcomes] = ()
    digest: str = ""
    whole: bool = True
    left_out: int = 0


def percent(metric: str, *series: Values) -> Score:
    """The mean of shares, or of several series' means, as a score."""
    interval = joint_interval(series)
    return Score(metric=metric, value=100 * interval.value, low=100 * interval.low, high=100 * interval.high)
