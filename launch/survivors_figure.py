"""The figure of `trimline analyse survivors`, a PNG, and its numbers as CSV."""

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from data_prep.files import write_atomic
from launch.report.survivor_rows import COLUMNS, Step, kept_rows

_SHOWN = 6
"""Steps that fit on a line."""
_GONE = (0.12, 0.12, 0.12, 0.8)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is left of a picture for a sentence.

    Attributes:
        picture: Name of its file.
        sentence: As given.
        pixels: (3, H, W) uint8, as the model gets it.
        grid: Rows and columns of patches.
        patches: By step.
        tokens: Of the sentence; empty where none are trimmed.
        words: Of the sentence, by step.
    """

    picture: str
    sentence: str
    pixels: Tensor
    grid: tuple[int, int]
    patches: Sequence[Step]
    tokens: tuple[str, ...]
    words: Sequence[Step]


def save_kept(folder: Path, name: str, model: str, kept: Sequence[Kept]) -> None:
    """Writes NAME.png, a line for each picture and sentence, and NAME.csv.

    Args:
        folder: Made if it is not there.
        name: Of the files.
        model: What it is called.
        kept: Of each picture and sentence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in kept:
        rows = kept_rows(each.grid, each.patches, each.tokens, each.words)
        writer.writerows([model, each.picture, each.sentence, *row] for row in rows)
    write_atomic(folder / f"{name}.csv", buffer.getvalue())
    write_atomic(folder / f"{name}.png", _png(f"{model}: patches that are left", kept))


def shown_steps(kept: Sequence[Kept]) -> list[str]:
    """As many as fit, from the first to the last, evenly."""
    steps = list(dict.fromkeys(step.name for each in kept for step in each.patches))
    count = min(_SHOWN, len(steps))
    return [steps[round(at * (len(steps) - 1) / max(1, count - 1))] for at in range(count)]


def _png(title: str, kept: Sequence[Kept]) -> bytes:
    steps = shown_steps(kept)
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc has no place here
        matplotlib.rcParams.update({"font.size": 8, "text.parse_math": False})
        size = 2.3 + 1.5 * (len(steps) + 1), 1.8 * len(kept) + 0.4
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=9)
        ratios = [1.5, *[1.0] * (len(steps) + 1)]
        panels = figure.subplots(len(kept), len(ratios), squeeze=False, width_ratios=ratios)
        for line, each in zip(panels, kept, strict=True):
            _line(line, each, steps)
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _line(panels: Sequence[Axes], kept: Kept, steps: Sequence[str]) -> None:
    """The sentence, the picture, and what each step leaves of it."""
    for axes in panels:
        axes.set_axis_off()
    said, whole, *rest = panels
    said.text(0, 1, _words(kept), va="top", transform=said.transAxes)
    picture = kept.pixels.permute(1, 2, 0).cpu().numpy()
    whole.imshow(picture)
    whole.set_title(kept.picture if len(kept.picture) < 24 else f"...{kept.picture[-20:]}", fontsize=7)
    left = {step.name: step.kept for step in kept.patches}
    for axes, name in zip(rest, steps, strict=True):
        if name in left:
            _panel(axes, picture, kept.grid, name, left[name])


def _panel(axes: Axes, picture: Any, grid: tuple[int, int], name: str, left: frozenset[int]) -> None:
    rows, columns = grid
    veil = np.zeros((rows * columns, 4))
    veil[[patch not in left for patch in range(rows * columns)]] = _GONE
    height, width = picture.shape[:2]
    axes.imshow(picture)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(veil.reshape(rows, columns, 4), extent=extent, interpolation="nearest")
    axes.set_title(f"{name}\n{len(left)} of {rows * columns}", fontsize=7)


def _words(kept: Kept) -> str:
    """The sentence, and what is left of it behind the last layer of each part."""
    lines = [textwrap.fill(kept.sentence, 30)]
    for step in {step.name.split(" layer ")[0]: step for step in kept.words}.values():
        words = " ".join(word for at, word in enumerate(kept.tokens) if at in step.kept)
        lines += ["", textwrap.fill(f"{step.name}: {words}", 34)]
    return "\n".join(lines)
