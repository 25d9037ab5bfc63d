"""What trimmed models do with single instances: cost histogram, retention by layer, cost by module, extreme instances.

Drawn from the files that evaluation leaves (`pipeline.measure.instances`): METHODS.md section 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.report.figures import HATCHES, INK, MARKERS, OKABE_ITO, Drawing, count_layers, draw
from launch.report.survivors import embed
from pipeline.trimming.target import Target

_BINS = 30
_GROUPS = {
    "vision": "image tokens kept",
    "text": "text tokens kept",
    "msa": "self-attention heads kept",
    "mca": "cross-attention heads kept",
}
_SPREAD = {"mean": "mean", "std": "std", "low": "q05", "lower": "q25", "middle": "q50", "upper": "q75", "high": "q95"}
"""What the files of evaluation call a spread, and what the CSV does: quantiles by their share."""
_COLUMNS = 2
_MODULES = dict(zip(("vision", "text", "fusion", "decoder", "head", "trimmers"), HATCHES, strict=False))
"""With the hatches that tell them apart without colours."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one model did on one split."""

    label: str
    stage: str
    task: str
    split: str
    gmacs: tuple[float, ...]
    """Of each instance."""
    full_gmacs: float
    """Mean of the untrimmed model."""
    modules: Mapping[str, float]
    full_modules: Mapping[str, float]
    """Means, in 10^9, of this model and of the untrimmed one."""
    kept: tuple[Mapping[str, Any], ...]
    """For each place "part", "layer", "stream", "group", and the spread of what is kept over instances."""
    shown: Mapping[str, Sequence[Mapping[str, Any]]]
    """"cheapest" and "dearest": "image", "text", "said", "right", "gmacs"."""
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """An instance that is shown, with its picture as a data: address."""

    source: str
    width: int
    height: int
    text: str
    said: str
    right: str
    """Empty where nobody says, and in older runs."""
    gmacs: float


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The cheapest and the dearest instances of one model on one split."""

    label: str
    split: str
    mean: float
    cheapest: tuple[Extreme, ...]
    dearest: tuple[Extreme, ...]


def told(value: Mapping[str, Any], folder: Path, task: str | None = None) -> Told:
    """What a file says.

    Args:
        value: The file's.
        folder: Where its pictures lie.
        task: The name of its task within the run; None for what is asked.
    """
    target = value["target"]
    named = target if isinstance(target, str) else Target(float(target), "x").name
    method = "" if value["method"] in ("smarttrim", "full") else f"{value['method']} "
    return Told(
        label=f"{method}{named}",
        stage=str(value["stage"]),
        task=task or str(value["task"]),
        split=str(value["split"]),
        gmacs=tuple(map(float, value["gmacs"])),
        full_gmacs=float(value["full_gmacs"]),
        modules=value["modules"],
        full_modules=value["full_modules"],
        kept=tuple(value["kept"]),
        shown={name: value[name] for name in ("cheapest", "dearest")},
        folder=folder,
    )


@dataclass(frozen=True)
class _Place:
    """What the figures of one task and split have in common."""

    task: str
    split: str
    origin: str
    said: str

    def name(self, kind: str) -> str:
        return f"{kind}-{self.task}-{self.split.strip('/').replace('/', '-')}"

    def title(self, what: str) -> str:
        return f"{self.task}, {self.split}: {what} {self.origin}"


def drawings(models: Sequence[Told], said: str = "", origin: str = "evaluation") -> list[Drawing]:
    """All figures of these models: for each task and split costs, shares of modules, and what is kept.

    Args:
        models: Of them.
        said: What else stands below each figure.
        origin: What looked at the instances; it stands in the titles.
    """
    found = []
    for task, split in dict.fromkeys((each.task, each.split) for each in models):
        own = [each for each in models if (each.task, each.split) == (task, split)]
        trimmed = [each for each in own if each.kept]
        place = _Place(task, split, f"({origin}, {len(own[0].gmacs):,} instances)", said)
        found += [_costs(place, own), _modules(place, own)]
        found += [_retention(place, trimmed)] if trimmed else []
    return found


def extremes(models: Sequence[Told]) -> tuple[list[Extremes], list[str]]:
    """The instances to show of models that trim, each on its first split, and a sentence for each lost picture."""
    found, problems = [], []
    several = len({each.task for each in models}) > 1
    for each in {each.stage: each for each in reversed(models) if each.kept}.values():
        shown: dict[str, tuple[Extreme, ...]] = {}
        for name, instances in each.shown.items():
            pairs = [_extreme(each.folder, instance) for instance in instances]
            shown[name] = tuple(one for one, _ in pairs if one is not None)
            problems += [problem for _, problem in pairs if problem]
        mean = sum(each.gmacs) / len(each.gmacs)
        label = f"{each.task} {each.label}" if several else each.label
        found.append(Extremes(label=label, split=each.split, mean=mean, **shown))
    return found[::-1], problems


def _extreme(folder: Path, instance: Mapping[str, Any]) -> tuple[Extreme | None, str]:
    try:
        source, (width, height) = embed(folder, str(instance["image"]))
    except (OSError, ValueError) as error:
        return None, f"picture {instance['image']} of the cheapest and dearest instances cannot be shown: {error}"
    words = {name: str(instance.get(name) or "") for name in ("text", "said", "right")}
    return Extreme(source=source, width=width, height=height, gmacs=float(instance["gmacs"]), **words), ""


def _costs(place: _Place, models: Sequence[Told]) -> Drawing:
    """A row for each model, on one axis."""
    whole = [cost for each in models for cost in each.gmacs]
    low, high = min(whole), max(whole)
    edges = np.linspace(low, high if high > low else low * 1.01 + 1e-9, _BINS + 1)
    counts = [np.histogram(each.gmacs, edges)[0] for each in models]

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
        for axes, each, own in zip(rows, models, counts, strict=True):
            axes.stairs(own, edges, fill=True, color=OKABE_ITO["sky"], edgecolor=OKABE_ITO["blue"], linewidth=0.8)
            axes.axvline(sum(each.gmacs) / len(each.gmacs), color=OKABE_ITO["vermillion"], linewidth=1.2,
                         label="mean")  # fmt: skip
            axes.axvline(each.full_gmacs, color=INK, linewidth=0.8, linestyle=(0, (1, 2)),
                         label="mean of the untrimmed model")  # fmt: skip
            axes.set_title(each.label, loc="left")
            axes.locator_params(axis="y", nbins=3)
        rows[-1].set_xlabel("GMACs of an instance")
        figure.legend(*rows[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.supylabel("instances", fontsize=8.5)

    numbers = [
        [each.label, edges[at], edges[at + 1], int(count), sum(each.gmacs) / len(each.gmacs), each.full_gmacs]
        for each, own in zip(models, counts, strict=True)
        for at, count in enumerate(own)
    ]
    size = (6.6, 1.05 + 1.05 * len(models))
    columns = ("model", "gmacs_from", "gmacs_to", "instances", "mean_gmacs", "untrimmed_gmacs")
    return draw(place.name("cost"), place.title("cost of instances"), place.said, size, paint, columns, numbers)


def _modules(place: _Place, models: Sequence[Told]) -> Drawing:
    """A bar for the untrimmed model and one for each other."""
    bars = {"untrimmed": models[0].full_modules}
    bars |= {each.label: each.modules for each in models if each.kept or each.modules != each.full_modules}
    title = place.title("where multiply-accumulates go")
    return bar_drawing(place.name("modules"), title, f"Means over instances. {place.said}".strip(), bars)


def bar_drawing(name: str, title: str, note: str, bars: Mapping[str, Mapping[str, float]]) -> Drawing:
    """Stacked bars of cost by module.

    Args:
        name: File name without ending.
        title: What is shown.
        note: A sentence below it.
        bars: For each bar its modules' multiply-accumulates, in 10^9.
    """
    known = dict.fromkeys([*_MODULES, *(module for bar in bars.values() for module in bar)])
    modules = [module for module in known if any(bar.get(module) for bar in bars.values())]
    totals, colours = {label: sum(bar.values()) for label, bar in bars.items()}, list(OKABE_ITO.values())

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(bars))
        for at, module in enumerate(modules):
            widths = np.array([bar.get(module, 0.0) for bar in bars.values()])
            axes.barh(list(bars), widths, left=left, height=0.5, color=colours[at % len(colours)], label=module,
                      hatch=_MODULES.get(module, ""), edgecolor="#ffffff", linewidth=0.6)  # fmt: skip
            left += widths
        for at, (label, total) in enumerate(totals.items()):
            there = {module: bars[label].get(module, 0.0) / total for module in modules}
            shares = ", ".join(f"{module} {share:.1%}" for module, share in there.items() if share)
            axes.annotate(f"{total:.4g} GMACs: {shares}", (0, at + 0.38), xytext=(2, 0), textcoords="offset points",
                          va="center", fontsize=7)  # fmt: skip
        axes.set_ylim(len(bars) - 0.4, -0.4)
        axes.set_xlabel("GMACs per instance")
        figure.legend(loc="outside lower center", ncols=len(modules))

    numbers = [
        [label, module, bar.get(module, 0.0), bar.get(module, 0.0) / totals[label]]
        for label, bar in bars.items()
        for module in modules
    ]
    size = (7.4, 1.0 + 0.58 * len(bars))
    return draw(name, title, note, size, paint, ("model", "module", "gmacs", "share"), numbers)


def _retention(place: _Place, models: Sequence[Told]) -> Drawing:
    """Rows of panels for each model, a panel for each group of units; at most two abreast, to be read on paper."""
    groups = [group for group in _GROUPS if any(one["group"] == group for each in models for one in each.kept)]

    columns, rows = min(_COLUMNS, len(groups)), -(-len(groups) // _COLUMNS)

    def paint(figure: Figure) -> None:
        for at, each in enumerate(models):
            for number, group in enumerate(groups):
                axes = figure.add_subplot(rows * len(models), columns, at * rows * columns + number + 1)
                _kept_panel(axes, [one for one in each.kept if one["group"] == group])
                axes.set_title(f"{each.label}: {_GROUPS[group]}", loc="left", fontsize=8.5)
                if number + columns >= len(groups):
                    axes.set_xlabel("layer, from 0")
        labels = dict.fromkeys(_line(one) for each in models for one in each.kept)
        marks: dict[str, Any] = {}
        for axes in figure.axes:
            handles, names = axes.get_legend_handles_labels()
            marks |= dict(zip(names, handles, strict=True))
        known = [label for label in labels if label in marks]
        figure.legend([marks[label] for label in known], known, loc="outside lower center", ncols=min(4, len(known)))

    numbers = [
        [each.label, *(one[name] for name in ("part", "layer", "stream", "group", *_SPREAD))]
        for each in models
        for one in each.kept
    ]
    head = ("model", "part", "layer", "stream", "group", *_SPREAD.values())
    note = (
        "Share of what the untrimmed model has there. Line: mean over instances. Bands: from the 25th to the 75th "
        "percentile of instances, and from the 5th to the 95th. Layers are counted from 0."
    )
    note = f"{note} {place.said}".strip()
    size = (3.3 * columns + 0.4, 1.75 * rows * len(models) + 0.7)
    title = place.title("what is kept, by layer and module")
    return draw(place.name("retention"), title, note, size, paint, head, numbers)


_LOOKS = {
    "vision": (OKABE_ITO["blue"], MARKERS[0]),
    "text": (OKABE_ITO["orange"], MARKERS[1]),
    "fusion, image": (OKABE_ITO["green"], MARKERS[2]),
    "fusion, text": (OKABE_ITO["vermillion"], MARKERS[3]),
}


def _line(place: Mapping[str, Any]) -> str:
    """`vision`, `text`, or a stream of the fusion."""
    return str(place["part"]) if place["part"] in ("vision", "text") else f"{place['part']}, {place['stream']}"


def _kept_panel(axes: Axes, places: Sequence[Mapping[str, Any]]) -> None:
    for label in dict.fromkeys(map(_line, places)):
        own = sorted((place for place in places if _line(place) == label), key=lambda place: int(place["layer"]))
        colour, marker = _LOOKS.get(label, (OKABE_ITO["purple"], MARKERS[4]))
        layers = [place["layer"] for place in own]
        for low, high, alpha in (("low", "high", 0.15), ("lower", "upper", 0.25)):
            axes.fill_between(
                layers, [p[low] for p in own], [p[high] for p in own], color=colour, alpha=alpha, linewidth=0
            )
        axes.plot(layers, [p["mean"] for p in own], color=colour, marker=marker, markersize=4, label=label)
    axes.set_ylim(-0.03, 1.05)
    count_layers(axes)
