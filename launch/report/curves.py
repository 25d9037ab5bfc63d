"""Training curves: metrics.jsonl, thinned to what a figure can show."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from launch.report.figures import INK, OKABE_ITO, Drawing, draw
from pipeline.progress import NON_FINITE, read_line

# More points than this cannot be told apart in a panel; each then stands for the mean of several steps.
MAX_POINTS = 150
_POSITIONS = ("step", "samples", "seconds")
# They repeat others, or do not change.
_NOT_DRAWN = ("lr/", "tokens/", "restarts", "samples_per_second_per_device", "validation/best", "validation/at_target")
_COLUMNS = 4
_TITLES = {
    "loss": "loss, all parts",
    "cost_share": "share of the full cost, measured",
    "wanted": "share that each group is asked to keep",
    "kept/vision": "image tokens kept, share",
    "kept/text": "text tokens kept, share",
    "kept/msa": "self-attention heads kept, share",
    "kept/mca": "cross-attention heads kept, share",
    "shift/vision": "shift of the scores, image tokens",
    "shift/text": "shift of the scores, text tokens",
    "shift/msa": "shift of the scores, self-attention heads",
    "shift/mca": "shift of the scores, cross-attention heads",
    "grad_norm": "norm of the gradient, before clipping",
    "noise_scale": "noise scale of the gradient, samples",
    "critical_batch": "critical batch, samples",
    "gradient/signal": "gradient: squared norm without noise",
    "gradient/noise": "gradient: variance of a sample's",
    "alpha": "weight of the momentum tower's labels",
    "lr": "learning rate",
    "samples_per_second": "samples/s",
    "data_wait": "share of time waiting for data",
    "cache_hits": "share of parts read that were there",
    "fetched_mb": "fetched between lines, MB",
    "read_ms": "reading, ms a sample",
    "decode_ms": "decoding, ms a sample",
    "text_ms": "tokenising, ms a sample",
    "tflops_per_device": "TFLOP/s of a device",
    "mfu": "model FLOPs utilisation",
    "memory_gib": "peak of main memory, GiB",
    "device_memory_gib": "peak of GPU memory, GiB",
    NON_FINITE: "values that were NaN or infinite",
}


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
        names = [name for name in self.columns if name not in _POSITIONS and not name.startswith(_NOT_DRAWN)]
        return sorted(names, key=_rank)

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
        name: values[ends - 1] if name in _POSITIONS else _means(values, starts)
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


def draw_curve(stage: str, curve: Curve, queue_at: float | None = None) -> Drawing:
    """A panel for the loss, each part of it, the learning rate and each further scalar of a stage.

    Args:
        stage: Its name.
        curve: What it logged.
        queue_at: The step from which the queue serves.
    """
    columns, per_point = thin(curve)
    names = curve.scalars
    rows = -(-len(names) // _COLUMNS)
    size = (2.65 * _COLUMNS, 1.9 * rows)

    def paint(figure: Figure) -> None:
        places = _places(figure, size, rows)
        for at, name in enumerate(names):
            axes = figure.add_subplot(places[divmod(at, _COLUMNS)])
            axes.set_title(_panel_title(name), loc="left")
            colour, dashes = _look(name)
            known = np.isfinite(columns[name])
            x, y = columns["step"][known], columns[name][known]
            axes.plot(x, y, color=colour, linestyle=dashes, marker="o" if len(x) == 1 else "")
            for step in curve.resumed_at:
                axes.axvline(step, color=INK, linewidth=0.7, linestyle=(0, (1, 2)))
            if queue_at is not None:
                axes.axvline(queue_at, color=OKABE_ITO["purple"], linewidth=0.9, linestyle=(0, (4, 2)))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
            if name == "lr":
                axes.set_ylim(bottom=0.0)
            if at + _COLUMNS >= len(names):
                axes.set_xlabel("step")

    order = [name for name in _POSITIONS if name in columns] + names
    table = [[float(columns[name][at]) for name in order] for at in range(len(columns["step"]))]
    note = (
        f"Each point is the mean of {per_point} lines of the log."
        if per_point > 1
        else "Every line of the log is drawn."
    )
    if curve.resumed_at:
        note += " Dotted lines: training went on from a checkpoint."
    if queue_at is not None:
        note += f" Dashed line at step {queue_at:.0f}: from there on the queue of features serves as keys."
    return draw(f"curves-{stage}", f"Training curves of {stage}", note, size, paint, order, table)


def _places(figure: Figure, size: tuple[float, float], rows: int) -> GridSpec:
    """Where panels stand, with room for ticks and titles: for matplotlib to find that out takes as long as the rest."""
    width, height = size
    figure.set_layout_engine("none")
    sides = {"left": 0.62 / width, "right": 1 - 0.08 / width, "bottom": 0.42 / height, "top": 1 - 0.24 / height}
    return figure.add_gridspec(rows, _COLUMNS, wspace=0.34, hspace=0.42, **sides)


def _panel_title(name: str) -> str:
    return _TITLES.get(name, name)


def _look(name: str) -> tuple[str, Any]:
    """Kinds of panels differ by line style as well as by colour."""
    if name == "loss":
        return OKABE_ITO["blue"], "-"
    if name.startswith("loss/"):
        return OKABE_ITO["vermillion"], "-"
    if name == "lr":
        return OKABE_ITO["green"], (0, (5, 1))
    return INK, "-"
