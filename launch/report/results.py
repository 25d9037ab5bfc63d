"""Groups the rows of results.json into tables: one per task, one line per method, target and split."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.result_rows import task_of
from pipeline.trimming.target import Target

# Metrics in percent, shown with one decimal; any other is shown with four digits.
_PERCENT = re.compile(r"(^|[_/ ])(accuracy|consistency|recall|chance|majority|[a-z]*r@\d+)($|[_/ ])", re.I)
# Where a task has several metrics, the first of these is the one drawn against the cost.
_MAIN_METRICS = ("accuracy", "mean_recall", "r@10", "cider")

NEAR = 0.03
"""How far what was reached may be from what was wanted."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measured value with its interval; `low` and `high` are None where no interval was computed."""

    value: float
    low: float | None
    high: float | None

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are known."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one method reached at one target on one split: a line of the table."""

    stage: str
    method: str
    target: float | str | None
    """A speed-up as a number, another target in words, as `35 ms`."""
    split: str
    seed: int | None
    seeds: tuple[int, ...] = ()
    """Of a mean over several runs those that it is over."""
    beside: tuple[int, ...] = ()
    """Further seeds that the method has and that the mean leaves out, for not all have them."""
    apart: bool = False
    """Whether the mean is over other seeds than those of the other lines."""
    gmacs: float | None
    """Mean multiply-accumulates per instance, in units of 10^9."""
    full_gmacs: float | None = None
    """The same of the untrimmed model on the same instances; older results do not say."""
    ratio: float | None = None
    """`gmacs` divided by those of the untrimmed model (target 1.0) on the same task and split."""
    wanted: float | None = None
    """The target's amount in its `unit`: `x`, `GMACs` or `ms`."""
    reached: float | None = None
    """The same as measured on this split, between `reached_low` and `reached_high` with 95% where it is a time."""
    reached_low: float | None = None
    reached_high: float | None = None
    unit: str = ""
    by_pruning: float | None = None
    """Cost of the unpruned model over that of the untrimmed one, where the backbone keeps pre-training's pruning."""
    by_trimming: float | None = None
    """Cost of the untrimmed model over this one's."""
    samples: int = 0
    skipped: int = 0
    """Samples of the split that could not be used, beside the `samples` that were evaluated."""
    of: int = 0
    """Pictures of the split, where retrieval ranked not all of them."""
    cells: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method with its target, as `smarttrim 2.0x`."""
        if self.target is None:
            return self.method
        return f"{self.method} {self.target if isinstance(self.target, str) else Target(self.target, 'x').name}"

    @property
    def miss(self) -> float | None:
        """By which part of the wanted figure the reached one is off; above 0 where it is larger."""
        return self.reached / self.wanted - 1 if self.wanted and self.reached is not None else None


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """All lines of one task; `metrics` in the order in which they were first reported."""

    task: str
    """Its name: of a run's further tasks the one that `tasks` gives them."""
    kind: str
    """What is asked: `trim.task`, or `retrieval`."""
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def main_metric(self) -> str:
        """The metric that is drawn against the cost."""
        known = {metric.lower(): metric for metric in reversed(self.metrics)}
        return next((known[name] for name in _MAIN_METRICS if name in known), self.metrics[0])

    @property
    def has_targets(self) -> bool:
        """Whether any line is of a model that was trained for a cost."""
        return any(line.target is not None for line in self.lines)

    @property
    def shows_reached(self) -> bool:
        """Whether any line had a target to reach."""
        return any(line.reached is not None for line in self.lines)

    @property
    def shows_ratio(self) -> bool:
        """Whether there is an untrimmed model to hold any cost against."""
        return any(line.ratio is not None for line in self.lines)

    @property
    def shows_pruning(self) -> bool:
        """Whether any line's backbone keeps pre-training's pruning, so that both add to its speed."""
        return any(line.by_pruning is not None for line in self.lines)

    @property
    def notes(self) -> list[str]:
        """One sentence for each split of which not every sample was evaluated, and for each target missed."""
        lines = {line.split: line for line in self.lines if line.skipped}
        parts = dict.fromkeys((line.split, line.samples + line.skipped, line.of) for line in self.lines if line.of)
        missed = [line for line in self.lines if line.miss is not None and abs(line.miss) > NEAR]
        told = [
            f"{line.label} on {line.split} is {abs(line.miss or 0):.1%} {'above' if (line.miss or 0) > 0 else 'below'} "
            f"what was wanted; {NEAR:.0%} are allowed"
            for line in missed
        ]
        told += [
            f"{split}: ranked among {ranked:,} of {of:,} pictures (evaluate.retrieval_pairs), which is easier than "
            "among all"
            for split, ranked, of in parts
        ]
        return told + [
            f"{split}: {line.skipped:,} of {line.samples + line.skipped:,} samples could not be used and count in no "
            "figure; see the stage's log"
            for split, line in lines.items()
        ]

    @property
    def several_seeds(self) -> bool:
        """Whether the lines differ in their seed, so that it must be shown."""
        return len({line.seed for line in self.lines}) > 1


def in_percent(metric: str) -> bool:
    """Whether a metric's values are percentages."""
    return _PERCENT.search(metric) is not None


def group_results(rows: Iterable[Mapping[str, Any]]) -> list[TaskTable]:
    """Turns rows of results.json into tables.

    Args:
        rows: objects with "stage", "method", "target", "task", "split", "metric", "value", "low", "high",
            "gmacs", "samples", "skipped" and "seed", those of a run's further tasks also "name"; a row measured again
            replaces the earlier one.
            Shares are in percent.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(task_of(row), []).append(row)
    return [_task_table(task, found) for task, found in tasks.items()]


def _task_table(task: str, rows: Sequence[Mapping[str, Any]]) -> TaskTable:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("stage", "method", "target", "split", "seed"))
        groups.setdefault(key, []).append(row)
    metrics = tuple(dict.fromkeys(str(row["metric"]) for row in rows))
    lines = [_line(found) for found in groups.values()]
    kind, told = str(rows[0]["task"]), tuple(_with_ratio(line, lines) for line in lines)
    return TaskTable(task=task, kind=kind, metrics=metrics, lines=told)


def _shares(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What pruning and trimming each add; older results do not say."""
    unpruned, full, own = (_number(row.get(name)) for name in ("unpruned_gmacs", "full_gmacs", "gmacs"))
    if not unpruned or not full or not own or unpruned == full:
        return {}
    return {"by_pruning": unpruned / full, "by_trimming": full / own}


def _line(rows: Sequence[Mapping[str, Any]], ratio: float | None = None) -> Line:
    first = rows[0]
    costs = (_number(row.get("gmacs")) for row in rows)
    seed, target = first.get("seed"), first.get("target")
    measured = {name: _number(first.get(name)) for name in ("wanted", "reached", "reached_low", "reached_high")}
    return Line(
        stage=str(first.get("stage", "")),
        method=str(first.get("method", "")),
        target=target if isinstance(target, str) else _number(target),
        split=str(first.get("split", "")),
        seed=int(seed) if seed is not None else None,
        seeds=tuple(first.get("seeds") or ()),
        beside=tuple(first.get("beside") or ()),
        apart=bool(first.get("apart")),
        gmacs=next((cost for cost in costs if cost is not None), None),
        full_gmacs=_number(first.get("full_gmacs")),
        ratio=ratio,
        **measured,
        **_shares(first),
        unit=str(first.get("unit", "")),
        samples=int(first.get("samples", 0)),
        skipped=int(first.get("skipped", 0)),
        of=int(first.get("of") or 0),
        cells={str(row["metric"]): cell for row in rows if (cell := _cell(row)) is not None},
    )


def _with_ratio(line: Line, lines: Sequence[Line]) -> Line:
    """The line with its cost relative to the untrimmed model's, of the same split and, if it can be, seed."""
    untrimmed = [other for other in lines if other.target == 1.0 and other.split == line.split]
    same_seed = [other for other in untrimmed if other.seed == line.seed]
    reference = next(iter(same_seed or untrimmed), None)
    if reference is None or not reference.gmacs or line.gmacs is None:
        return line
    return Line(**{**vars(line), "ratio": line.gmacs / reference.gmacs})


def _cell(row: Mapping[str, Any]) -> Cell | None:
    value = _number(row.get("value"))
    if value is None:
        return None
    return Cell(value=value, low=_number(row.get("low")), high=_number(row.get("high")))


def _number(value: Any) -> float | None:
    """A finite number, or None for what is absent: results.json may hold null where nothing was measured."""
    if value is None or isinstance(value, str | bool):
        return None
    number = float(value)
    return number if math.isfinite(number) else None
