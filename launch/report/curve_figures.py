"""Figures of training curves: how a stage learned, and apart from it how fast it went."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from launch.report.curves import POSITIONS, Curve, thin
from launch.report.figures import INK, OKABE_ITO, Drawing, draw
from pipeline.progress import NON_FINITE

_COLUMNS = 4
WIDTH = 2.65 * _COLUMNS
_LOG_RATIO = 100
"""Norms of gradients that spread further are drawn by their logarithm: one peak would press the others to the axis."""
TITLES = {
    "loss": "loss, all parts",
    "cost_share": "share of the full cost",
    "wanted": "wanted share",
    "kept/vision": "kept: image tokens",
    "kept/text": "kept: text tokens",
    "kept/msa": "kept: self-att. heads",
    "kept/mca": "kept: cross-att. heads",
    "shift/vision": "shift: image tokens",
    "shift/text": "shift: text tokens",
    "shift/msa": "shift: self-att. heads",
    "shift/mca": "shift: cross-att. heads",
    "accuracy": "accuracy, training, share",
    "grad_norm": "gradient norm",
    "noise_scale": "noise scale, samples",
    "critical_batch": "critical batch, samples",
    "gradient/signal": "gradient: signal",
    "gradient/noise": "gradient: noise",
    "alpha": "momentum labels' weight",
    "lr": "learning rate",
    "samples_per_second": "samples/s",
    "data_wait": "share of time without data",
    "cache_hits": "cache hits, share",
    "fetched_mb": "fetched, MB a line",
    "fetch_failures": "failed fetches",
    "read_ms": "reading, ms a sample",
    "decode_ms": "decoding, ms a sample",
    "text_ms": "tokenising, ms a sample",
    "tflops_per_device": "TFLOP/s of a device",
    "mfu": "model FLOPs utilisation",
    "memory_gib": "main memory, peak GiB",
    "device_memory_gib": "GPU memory, peak GiB",
    NON_FINITE: "NaN or infinite values",
}
# How a stage was fed and how fast it went: of interest where training is slow, not where its model is bad.
_OF_SPEED = (
    "samples_per_second", "tflops_per_device", "mfu", "memory_gib", "device_memory_gib", "data_wait", "read_ms",
    "decode_ms", "text_ms", "cache_hits", "fetched_mb", "fetch_failures", "noise_scale", "critical_batch",
    "gradient/signal", "gradient/noise",
)  # fmt: skip
# What a panel's few words leave open, for figures that have it.
_EXPLAINED = {
    "accuracy": "Accuracy: the share of right answers among training batches.",
    "kept/": "Kept: the share that trimming leaves, as measured.",
    "wanted": "Wanted share: what each group is asked to keep at that step.",
    "shift": "Shift: what is added to the scores of a group that keeps more than it is asked to.",
    "alpha": "Momentum labels' weight: of the momentum tower's answers in the targets.",
    "gradient/": "Signal: squared norm of the gradient without noise; noise: variance of one sample's gradient.",
    "noise_scale": "Noise scale: the batch up to which more samples a step save nearly as many steps.",
    "critical_batch": "Critical batch: the noise scale's mean over training.",
    "tflops_per_device": "A multiply-add is two FLOPs.",
}


def draw_curve(
    stage: str, curve: Curve, queue_at: float | None = None, grad_clip: float | None = None
) -> Drawing | None:
    """A panel for the loss, each part of it, the learning rate and each further scalar of a stage's learning.

    Args:
        stage: Its name.
        curve: What it logged.
        queue_at: The step from which the queue serves.
        grad_clip: The norm that gradients were clipped to; 0 where they were not, None where that is not known.

    Returns:
        The figure, or None where the stage logged nothing of the kind.
    """
    names = [name for name in curve.scalars if name not in _OF_SPEED]
    told = [*_whose(curve, names), *_clipped(names, grad_clip)]
    if queue_at is not None:
        told.append(
            f"Dashed line at step {queue_at:.0f}: from there on the queue of features serves as keys, so the loss is "
            "expected to jump: there are more wrong answers to tell apart."
        )
    return _draw(f"curves-{stage}", f"Training curves of {stage}", curve, names, told, queue_at)


def draw_speed(stage: str, curve: Curve) -> Drawing | None:
    """A panel for each scalar that says how fast a stage went, what fed it and how large its batches might be.

    Returns:
        The figure, or None where the stage logged nothing of the kind.
    """
    names = [name for name in _OF_SPEED if name in curve.scalars]
    return _draw(f"curves-{stage}-speed", f"Speed and memory of {stage}", curve, names, [])


def _draw(
    name: str, title: str, curve: Curve, names: Sequence[str], told: Sequence[str], queue_at: float | None = None
) -> Drawing | None:
    if not names:
        return None
    columns, per_point = thin(curve)
    rows = -(-len(names) // _COLUMNS)
    size = (WIDTH, 1.9 * rows)

    def paint(figure: Figure) -> None:
        places = _places(figure, size, rows)
        for at, panel in enumerate(names):
            axes = figure.add_subplot(places[divmod(at, _COLUMNS)])
            _panel(axes, panel, columns["step"], columns[panel])
            for step in curve.resumed_at:
                axes.axvline(step, color=INK, linewidth=0.7, linestyle=(0, (1, 2)))
            if queue_at is not None:
                axes.axvline(queue_at, color=OKABE_ITO["purple"], linewidth=0.9, linestyle=(0, (4, 2)))
            axes.set_xlim(*_span(columns["step"]))
            if at + _COLUMNS >= len(names):
                axes.set_xlabel("step")

    order = [column for column in POSITIONS if column in columns] + list(names)
    table = [[float(columns[column][at]) for column in order] for at in range(len(columns["step"]))]
    restarted = ["Dotted lines: training went on from a checkpoint."] if curve.resumed_at else []
    explained = [words for key, words in _EXPLAINED.items() if any(each.startswith(key) for each in names)]
    note = " ".join([_points(per_point), *restarted, *told, *explained])
    return draw(name, title, note, size, paint, order, table)


def _points(per_point: int) -> str:
    lines = f"Each point is the mean of {per_point} lines" if per_point > 1 else "Every line is drawn"
    return f"{lines} of the log; a line is the mean over the steps since the one before."


def _whose(curve: Curve, names: Sequence[str]) -> list[str]:
    """Which process's samples the numbers are of, where there are several."""
    if not curve.several_processes or not {"loss", "accuracy"} & set(names):
        return []
    return ["All parts' loss is the mean over all processes; its parts and accuracy are of the first one's samples."]


def _clipped(names: Sequence[str], grad_clip: float | None) -> list[str]:
    if "grad_norm" not in names:
        return []
    if grad_clip == 0:
        return ["Gradients are not clipped; AdamW divides each by its own size, so a large norm alone says little."]
    clipping = "any clipping" if grad_clip is None else f"clipping to {grad_clip:g}"
    return [f"The gradient norm is the one before {clipping}."]


def _panel(axes: Axes, name: str, step: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    axes.set_title(TITLES.get(name, name), loc="left")
    colour, dashes = _look(name)
    known = np.isfinite(values)
    x, y = step[known], values[known]
    axes.plot(x, y, color=colour, linestyle=dashes, marker="o" if len(x) == 1 else "")
    if name == "grad_norm" and len(y) and y.min() > 0 and y.max() > _LOG_RATIO * y.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    if name == "lr":
        axes.set_ylim(bottom=0.0)


def _span(step: NDArray[np.float64]) -> tuple[float, float]:
    """The same steps along every panel, also along one whose scalar came late."""
    first, last = float(step.min()), float(step.max())
    room = 0.05 * (last - first) or 1.0
    return first - room, last + room


def _places(figure: Figure, size: tuple[float, float], rows: int) -> GridSpec:
    """Where panels stand, with room for ticks and titles: for matplotlib to find that out takes as long as the rest."""
    width, height = size
    figure.set_layout_engine("none")
    sides = {"left": 0.62 / width, "right": 1 - 0.08 / width, "bottom": 0.42 / height, "top": 1 - 0.24 / height}
    return figure.add_gridspec(rows, _COLUMNS, wspace=0.34, hspace=0.42, **sides)


def _look(name: str) -> tuple[str, Any]:
    """Kinds of panels differ by line style as well as by colour."""
    if name == "loss":
        return OKABE_ITO["blue"], "-"
    if name.startswith("loss/"):
        return OKABE_ITO["vermillion"], "-"
    if name == "lr":
        return OKABE_ITO["green"], (0, (5, 1))
    return INK, "-"
