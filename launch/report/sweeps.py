"""Ablations as figures: differences from a reference, and scores over a setting that several runs vary (a λ sweep)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.compare_table import COST, cells_of
from launch.report.figures import INK, MARKERS, OKABE_ITO, Drawing, draw
from launch.report.means import FEWEST_SEEDS
from launch.report.words import metric_name, seeds_in_words

Line = Mapping[str, Any]
"""Of `launch.compare_table.lines_of`."""

_OWN = ("out", "name", "seed", "data.seed", "budget.minutes", "checkpoint.path")
"""What runs of a comparison differ in though they are of one variant."""
_FEWEST = 3
_SYMBOLS = {"pruning.elip.vision_weight": ("λ", "the share of the vision CLS in the blend with the sentence vector")}
"""Ends of keys that the papers, our documents and the variants' names call otherwise: by what, and what that is."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Variants that differ in one number."""

    key: str
    """Of the configuration."""
    values: Mapping[str, float]
    """For each variant its number, rising."""

    @property
    def name(self) -> str:
        """The key, and what else it is called."""
        return f"{self.symbol[0]} ({self.key})" if self.symbol else self.key

    @property
    def symbol(self) -> tuple[str, str] | None:
        """What the key is called elsewhere, and what it stands for."""
        return next((known for end, known in _SYMBOLS.items() if self.key.endswith(end)), None)


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration as {dotted key: value}, without what tells runs of one variant apart."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        elif f"{above}{key}" not in _OWN:
            found[f"{above}{key}"] = value
    return found


def sweeps_of(configs: Mapping[str, Mapping[str, Any]]) -> list[Sweep]:
    """The numbers that at least three variants differ in, and in nothing else.

    Args:
        configs: The configuration of each variant.
    """
    flats = {variant: flat(config) for variant, config in configs.items()}
    found = []
    for key in sorted({key for each in flats.values() for key in each}):
        groups: dict[str, dict[str, float]] = {}
        for variant, each in flats.items():
            if _is_number(each.get(key)):
                rest = repr(sorted((name, value) for name, value in each.items() if name != key))
                groups.setdefault(rest, {})[variant] = float(each[key])
        for values in groups.values():
            if len(set(values.values())) >= _FEWEST:
                ordered = dict(sorted(values.items(), key=lambda pair: pair[1]))
                found.append(Sweep(key=key, values=ordered))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scores(lines: Sequence[Line]) -> list[str]:
    """Names of what is scored; costs have figures of their own."""
    return [name for name in cells_of(lines) if not name.endswith(COST)]


def draw_sweep(sweep: Sweep, budget: str, lines: Sequence[Line], number: int = 1) -> Drawing | None:
    """A panel for each score over the number; None where fewer than three variants have scores.

    Args:
        sweep: What is varied.
        budget: Of the runs.
        lines: Of the comparison.
        number: Of the sweep, which keeps names apart where one key is swept twice.
    """
    own = {line["variant"]: line for line in lines if line["budget"] == budget and line["variant"] in sweep.values}
    if len(own) < _FEWEST:
        return None
    points = [(value, own[variant]) for variant, value in sweep.values.items() if variant in own]
    names = _scores([line for _, line in points])
    if not names:
        return None

    def paint(figure: Figure) -> None:
        for axes, name in _panels(figure, names):
            there = [(value, line["metrics"][name]) for value, line in points if name in line["metrics"]]
            for value, cell in there:
                axes.plot([value] * len(cell["values"]), cell["values"], linestyle="", marker="_", color=INK)
            axes.plot([v for v, _ in there], [cell["mean"] for _, cell in there],
                      color=OKABE_ITO["blue"], marker=MARKERS[0])  # fmt: skip
            axes.set_title(metric_name(name), loc="left", fontsize=7.5)
            axes.set_xlabel(sweep.name, fontsize=7.5)

    numbers = [
        [line["variant"], value, name, seed, score]
        for value, line in points
        for name in names
        if name in line["metrics"]
        for seed, score in zip(line["metrics"][name]["seeds"], line["metrics"][name]["values"], strict=True)
    ]
    title, told = f"{sweep.name}, budget {budget}", "" if number == 1 else f"-{number}"
    meant = f"{' is '.join(sweep.symbol)}. " if sweep.symbol else ""
    note = f"{meant}Of {', '.join(sweep.values)}. Line: means over seeds. Dashes: single seeds."
    columns = ("variant", sweep.key, "metric", "seed", "value")
    return draw(f"sweep-{sweep.key}-{budget}{told}", title, note, _size(names), paint, columns, numbers)


def draw_differences(reference: str, budget: str, lines: Sequence[Line]) -> Drawing | None:
    """A panel for each score: each variant's paired difference from the reference; None where there is none."""
    own = [line for line in lines if line["budget"] == budget and line["variant"] != reference]
    names = [name for name in _scores(own) if any("difference" in line["metrics"].get(name, {}) for line in own)]
    if not names:
        return None
    variants = [line["variant"] for line in own]

    def paint(figure: Figure) -> None:
        for at, (axes, name) in enumerate(_panels(figure, names)):
            _differences(axes, [line["metrics"].get(name, {}) for line in own])
            axes.set_yticks(range(len(variants)), variants if at % _COLUMNS == 0 else [""] * len(variants))
            axes.set_ylim(len(variants) - 0.5, -0.5)
            axes.set_title(metric_name(name), loc="left", fontsize=7.5)
        figure.supxlabel(f"difference from {reference}, points", fontsize=8.5)

    numbers = [
        [line["variant"], name, seeds_in_words(cell["seeds"]), cell["mean"],
         seeds_in_words(cell["pairs"]), cell["difference"], cell["half_width"]]
        for line in own
        for name in names
        if "difference" in (cell := line["metrics"].get(name, {}))
    ]  # fmt: skip
    title = f"Differences from {reference}, budget {budget}"
    note = (
        "Means over pairs of the same seed; 95% intervals (Student's t) are drawn where there are three pairs or more."
    )
    columns = ("variant", "metric", "seeds", "mean", "pairs", "difference", "half_width")
    width, height = _size(names)
    size = width + 0.8, height / 1.9 * (0.7 + 0.21 * len(variants))
    return draw(f"differences-{budget}", title, note, size, paint, columns, numbers)


_COLUMNS = 4


def _panels(figure: Figure, names: Sequence[str]) -> list[tuple[Axes, str]]:
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    return [(figure.add_subplot(rows, columns, at + 1), name) for at, name in enumerate(names)]


def _size(names: Sequence[str]) -> tuple[float, float]:
    return max(4.0, 2.65 * min(_COLUMNS, len(names))), 1.9 * -(-len(names) // _COLUMNS)


def _differences(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0.0, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    for at, cell in enumerate(cells):
        if "difference" in cell:
            half = cell["half_width"] if len(cell["pairs"]) >= FEWEST_SEEDS else None
            axes.errorbar([cell["difference"]], [at], xerr=None if half is None else [[half]] * 2, capsize=2.5,
                          markersize=5, marker=MARKERS[0], color=OKABE_ITO["blue"], linestyle="none")  # fmt: skip
