"""Training curves: metrics.jsonl, thinned to what a figure can show."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import read_line

# More points than this cannot be told apart in a panel; each then stands for the mean of several steps.
MAX_POINTS = 150
POSITIONS = ("step", "samples", "seconds")
# They repeat others, or do not change.
_NOT_DRAWN = ("lr/", "tokens/", "restarts", "samples_per_second_per_device", "validation/best", "validation/at_target")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The numbers of a stage's training by step; NaN where a step did not report one."""

    columns: Mapping[str, NDArray[np.float64]]
    """By name, each of one length: "step", "samples", "seconds", "lr", "loss", further ones."""
    resumed_at: tuple[int, ...]
    """Steps from which training went on after a restart."""
    broken_lines: int
    """Lines that hold no step, but for a last one that a kill cut short."""

    @property
    def scalars(self) -> list[str]:
        """What is drawn: the loss, its parts, the learning rate, then the others."""
        names = [name for name in self.columns if name not in POSITIONS and not name.startswith(_NOT_DRAWN)]
        return sorted(names, key=_rank)

    @property
    def several_processes(self) -> bool:
        """Whether more than one process trained, as the speed of all and that of one say."""
        whole, of_one = (self.columns.get(f"samples_per_second{of}", np.empty(0)) for of in ("", "_per_device"))
        return whole.shape == of_one.shape and bool(np.any(whole > 1.5 * of_one))

    def last(self, name: str) -> float | None:
        """The last value that was reported of a column."""
        values = self.columns.get(name, np.empty(0))
        known = values[np.isfinite(values)]
        return float(known[-1]) if known.size else None

    def total(self, name: str) -> float:
        """The sum of a column; 0 where it never was reported."""
        return float(np.nansum(self.columns.get(name, np.zeros(1))))


def _rank(name: str) -> tuple[int, str]:
    if name == "loss":
        return 0, name
    if name.startswith("loss/"):
        return 1, name
    return (2, name) if name == "lr" else (3, name)


def read_curve(path: Path) -> Curve | None:
    """Reads metrics.jsonl; a step that was run again after a restart counts once, with its later numbers.

    Returns:
        The curve, or None where there is no step.
    """
    if not path.exists():
        return None
    steps: dict[int, Mapping[str, Any]] = {}
    resumed, broken, latest = [], 0, -1
    whole, _, cut = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    for line in [*whole.split("\n"), cut]:
        entry = _entry(line)
        if entry is None:
            broken += bool(line) and line is not cut
            continue
        step = int(entry["step"])
        if step <= latest:
            resumed.append(step)
            # What the killed process did after its last checkpoint is done again, maybe with other log steps.
            steps = {old: kept for old, kept in steps.items() if old < step}
        latest = step
        steps[step] = entry
    if not steps:
        return None
    return Curve(columns=_columns(list(steps.values())), resumed_at=tuple(resumed), broken_lines=broken)


def _entry(line: str) -> Mapping[str, Any] | None:
    try:
        value = read_line(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def _columns(entries: list[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for entry in entries for name in entry)
    return {
        name: np.array([_float(entry.get(name)) for entry in entries])
        for name in names
        if any(_is_number(entry.get(name)) for entry in entries)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: Any) -> float:
    return float(value) if _is_number(value) else float("nan")


def thin(curve: Curve, points: int = MAX_POINTS) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Means over equal runs of log lines, so that at most `points` are left.

    Returns:
        The columns, and how many log lines one point stands for. Positions (step, samples, seconds) are those
        of the last line of a run, so that the curve ends where training did.
    """
    length = len(curve.columns["step"])
    per_point = -(-length // points)
    starts = np.arange(0, length, per_point)
    ends = np.append(starts[1:], length)
    return {
        name: values[ends - 1] if name in POSITIONS else _means(values, starts)
        for name, values in curve.columns.items()
    }, per_point


def _means(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of each run of values, without those that were not reported."""
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return means


def queue_begins(config: Mapping[str, Any], curve: Curve) -> float | None:
    """The step from which a pre-training that went to its end takes keys from its queue; None where it is not known.

    Args:
        config: Of the run.
        curve: Of its pre-training: "alpha" is there where there is a momentum tower, whose features the queue holds.
    """
    given: Any = config
    for key in ("pretrain", "objectives"):
        given = given.get(key) if isinstance(given, Mapping) else None
    budget = config.get("budget")
    timed = isinstance(budget, Mapping) and budget.get("minutes") is not None  # then progress is of time, not of steps
    if not isinstance(given, Mapping) or timed or "alpha" not in curve.columns or not given.get("queue"):
        return None
    start, end = _float(given.get("queue_start")), curve.last("step")
    return start * end if 0 < start < 1 and end is not None else None
