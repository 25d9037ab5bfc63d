"""When each stage of a run was at work."""

from collections.abc import Sequence
from datetime import datetime

from launch.report.run_folder import Stage
from launch.report.words import as_moment


def timeline(stages: Sequence[Stage]) -> dict[str, tuple[float, float]]:
    """Where each stage lies in the run: (start, length) in percent of its whole time, pauses of the run included."""
    spans = {
        stage.name: (when.timestamp(), _length(stage, when))
        for stage in stages
        if stage.seconds is not None and (when := as_moment(stage.started)) is not None
    }
    if not spans:
        return {}
    first = min(start for start, _ in spans.values())
    whole = max(start + length for start, length in spans.values()) - first or 1.0
    return {
        name: (round(100 * (start - first) / whole, 2), round(100 * length / whole, 2))
        for name, (start, length) in spans.items()
    }


def _length(stage: Stage, began: datetime) -> float:
    """Seconds from a stage's first start to its end: more than it took where it was stopped between."""
    ended = as_moment(stage.ended)
    return (stage.seconds or 0.0) if ended is None else max(0.0, (ended - began).total_seconds())
