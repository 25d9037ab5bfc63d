"""Accuracy against computation: which method gives most for its multiply-accumulates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.report.figures import INK, MARKERS, OKABE_ITO, Drawing, draw
from launch.report.point_labels import label_points
from launch.report.quoted import SOURCE, Quoted
from launch.report.results import Line, TaskTable, in_percent
from launch.report.words import metric_name, metric_number, seeds_in_words
from pipeline.trimming.target import Target

_MOST_NAMED = 8
"""Points whose values stand beside them; those of more would lie on each other."""
_CSV = (
    "task", "split", "method", "target", "seeds", "metric", "gmacs", "value", "low", "high", "on_front", "quoted",
    "asked_gmacs",
)  # fmt: skip
_ALIKE = 0.01
"""By which share costs that one target asks of several models may differ, for one line to stand for both."""
_LEAST_POINTS = 2.0
"""What the axis of a score in percent spans at least where no interval tells how much is chance."""
_ROWS, _LETTER = 4, 0.018
"""Rows for the names of targets that would lie on each other, and the width of a letter as a share of the panel's."""


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one beats: none is as cheap and better, or cheaper and as good.

    Args:
        points: (cost, value), value higher is better.

    Returns:
        Their places in `points`, by rising cost.
    """
    best, kept = float("-inf"), []
    for at in sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1])):
        if points[at][1] > best:
            best = points[at][1]
            kept.append(at)
    return kept


def draw_pareto(table: TaskTable, named: str = "", published: Sequence[Quoted] = ()) -> Drawing | None:
    """A panel per split, a marker per method; None where no split has two costs.

    Args:
        table: What was measured.
        named: What its name ends with, where a page has several of one task.
        published: Drawn beside it, apart from the front.
    """
    metric = table.main_metric
    lines = [line for line in table.lines if line.gmacs is not None and metric in line.cells]
    splits = list(dict.fromkeys(line.split for line in lines))
    if all(len({line.gmacs for line in lines if line.split == split}) < 2 for split in splits):
        return None
    # Of many points, those of one method look alike: their targets stand above the dotted lines.
    many = len({line.label for line in lines}) > _MOST_NAMED
    looks = _looks(lines, many)
    size = (max(5.0, min(10.6, 4.4 * len(splits))), 3.6)
    columns = int(size[0] / 1.8)
    rows: list[list[Any]] = []
    for split in splits:
        rows += _rows(table.task, metric, [line for line in lines if line.split == split])
        rows += [_quoted_row(table.task, split, row) for row in published if row.split == split]

    def paint(figure: Figure) -> None:
        for at, split in enumerate(splits):
            axes = figure.add_subplot(1, len(splits), at + 1)
            _quoted_points(axes, [row for row in published if row.split == split])
            _panel(axes, metric, [line for line in lines if line.split == split], looks)
            axes.set_title(split, loc="left")
        marks: dict[str, Any] = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            marks |= dict(zip(labels, handles, strict=True))
        figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=min(columns, len(marks)))
        figure.draw_without_rendering()  # lays it out
        for axes, split in zip(figure.axes, splits, strict=True):
            own = [(row.gmacs or 0.0, row.value) for row in published if row.split == split]
            _name_values(axes, metric, [line for line in lines if line.split == split], own)

    note = (
        f"{_of_seeds(lines)}Solid line: the front, what no other one beats. Dotted: the cost that each target asks for"
    )
    apart = any(_differing(_all_asked([line for line in lines if line.split == split])) for split in splits)
    note += "; in its colour where that is one method's own." if apart else "."
    if published:
        what = "means of what is quoted for each way" if any(row.mean_of for row in published) else "quoted"
        note += f" Hollow: {what} from {SOURCE}, not measured here."
    title = f"{table.task}: {metric_name(metric)} against computation"
    return draw(f"pareto-{table.task}{named}", title, note, size, paint, _CSV, rows)


def _looks(lines: Sequence[Line], by_method: bool) -> dict[str, tuple[str, str, str]]:
    """For the label of each line a colour, a marker, and what the legend says."""
    colours = list(OKABE_ITO.values())
    names = {line.label: line.method if by_method else line.label for line in lines}
    order = list(dict.fromkeys(names.values()))
    return {
        label: (colours[order.index(name) % len(colours)], MARKERS[order.index(name) % len(MARKERS)], name)
        for label, name in names.items()
    }


def _of_seeds(lines: Sequence[Line]) -> str:
    """What means are over, of whom there are more seeds, and who has others; nothing of a run's own scores."""
    if not any(line.seeds for line in lines):
        return ""
    common = {line.seeds for line in lines if line.seeds and not line.apart}
    told = [f"Means over seeds {' or '.join(map(seeds_in_words, common))}." if common else "No seeds are shared."]
    more = {line.method: line.beside for line in lines if line.beside}
    if more:
        told.append(f"Left out, for not all have them: {_whose(more)}.")
    own = {line.method: line.seeds for line in lines if line.apart}
    if own:
        told.append(f"Hollow, and no part of the front, are means over other seeds: {_whose(own)}.")
    return " ".join([*told, ""])


def _whose(seeds: Mapping[str, Sequence[int]]) -> str:
    """Methods with their seeds."""
    return "; ".join(f"{name} {seeds_in_words(own)}" for name, own in seeds.items())


def _points(lines: Sequence[Line], metric: str) -> list[tuple[float, float]]:
    return [(line.gmacs or 0.0, line.cells[metric].value) for line in lines]


def _on_front(lines: Sequence[Line], metric: str) -> list[int]:
    """Places of the lines that are on the front, by rising cost; means over other seeds cannot beat any."""
    places = [at for at, line in enumerate(lines) if not line.apart]
    return [places[at] for at in front(_points([lines[at] for at in places], metric))]


def _rows(task: str, metric: str, lines: Sequence[Line]) -> list[list[Any]]:
    kept = set(_on_front(lines, metric))
    rows = []
    for at, line in enumerate(lines):
        cell = line.cells[metric]
        seeds = seeds_in_words(line.seeds) if line.seeds else line.seed
        which = (task, line.split, line.method, line.target, seeds, metric)
        numbers = (line.gmacs, cell.value, cell.low, cell.high, int(at in kept), 0)
        rows.append([*which, *numbers, _asked(line, lines)])
    return rows


def _quoted_row(task: str, split: str, row: Quoted) -> list[Any]:
    return [task, split, row.label, None, None, row.metric, row.gmacs, row.value, None, None, 0, 1, None]


def _quoted_points(axes: Axes, rows: Sequence[Quoted]) -> None:
    for at, name in enumerate(dict.fromkeys(row.method for row in rows)):
        own = [row for row in rows if row.method == name]
        costs, values = [row.gmacs or 0.0 for row in own], [row.value for row in own]
        how = "mean of quoted" if own[0].mean_of else "quoted"
        axes.plot(costs, values, linestyle=(0, (1, 2)), linewidth=0.8, color=INK, zorder=2, markerfacecolor="none",
                  marker=MARKERS[at % len(MARKERS)], label=f"{name}, {how}")  # fmt: skip


def _panel(axes: Axes, metric: str, lines: Sequence[Line], looks: dict[str, tuple[str, str, str]]) -> None:
    points = _points(lines, metric)
    best = [points[at] for at in _on_front(lines, metric)]
    axes.plot([x for x, _ in best], [y for _, y in best], color=INK, linewidth=0.9, zorder=1)
    seen: set[str] = set()
    for line, (x, y) in zip(lines, points, strict=True):
        cell = line.cells[metric]
        low, high = (cell.low, cell.high) if cell.low is not None and cell.high is not None else (y, y)
        # An interval may miss its own value (bootstrap of a rare event); a bar has no negative length.
        error = [[max(0.0, y - low)], [max(0.0, high - y)]]
        colour, marker, name = looks[line.label]
        label = name if name not in seen else None
        seen.add(name)
        axes.errorbar([x], [y], yerr=error if cell.has_interval else None, color=colour, marker=marker, markersize=7,
                      markerfacecolor="none" if line.apart else colour, capsize=3, linestyle="none", label=label,
                      zorder=3, clip_on=False)  # fmt: skip
    axes.margins(x=0.15, y=0.2)
    if in_percent(metric):
        low, high = axes.get_ylim()
        if not any(line.cells[metric].has_interval for line in lines):  # else tenths would look like much
            more = max(0.0, _LEAST_POINTS - (high - low)) / 2
            low, high = low - more, high + more
        axes.set_ylim(max(0.0, low), min(100.0, high))
    # From here on nothing widens the axis by itself; of a target that all models miss the line is to be seen too.
    dearest = max((each.gmacs for each in _all_asked(lines)), default=0.0)
    axes.set_xlim(0.0, max(axes.get_xlim()[1], 1.05 * dearest))
    _targets(axes, lines, looks)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("GMACs per instance")
    axes.set_ylabel(metric_name(metric))


def _name_values(axes: Axes, metric: str, lines: Sequence[Line], published: Sequence[tuple[float, float]]) -> None:
    """Each point's value beside it, where they are few."""
    if len(lines) > _MOST_NAMED:
        return
    cells = [(line.gmacs or 0.0, line.cells[metric]) for line in lines]
    texts = [(x, cell.value, metric_number(metric, cell.value)) for x, cell in cells]
    bars = [(x, cell.low, cell.high) for x, cell in cells if cell.low is not None and cell.high is not None]
    points = _points(lines, metric)
    label_points(axes, texts, bars, published, [points[at] for at in _on_front(lines, metric)])


@dataclass(frozen=True)
class _Asked:
    """A cost that a target asks for, of which methods, and the label of the first line among them."""

    name: str
    gmacs: float
    methods: tuple[str, ...]
    label: str


def _asked(line: Line, lines: Sequence[Line]) -> float | None:
    """The cost that a line's target asks of its model; None where it asks for a time, or the whole is not known."""
    if line.target is None:
        return None
    target = Target.parse(line.target)
    if target.unit != "x":
        return target.amount if target.unit == "GMACs" else None
    full = [other for other in lines if other.target == 1.0 and other.gmacs is not None]
    own = [other for other in full if other.method == line.method]
    # A run calls its untrimmed model `full`, whatever trims; in a comparison each variant has one of its own.
    whole = line.full_gmacs or next((other.gmacs for other in own or full), None)
    return None if whole is None else whole / target.amount


def _all_asked(lines: Sequence[Line]) -> list[_Asked]:
    """What the targets of a split ask for, by rising cost: of costs that are alike under one name the first."""
    found: list[_Asked] = []
    for line in lines:
        if (cost := _asked(line, lines)) is None:
            continue
        name = Target.parse(line.target or "").name
        same = next((each for each in found if each.name == name and abs(each.gmacs / cost - 1) < _ALIKE), None)
        if same is None:
            found.append(_Asked(name, cost, (line.method,), line.label))
        elif line.method not in same.methods:
            found[found.index(same)] = replace(same, methods=(*same.methods, line.method))
    return sorted(found, key=lambda each: each.gmacs)


def _differing(found: Sequence[_Asked]) -> set[str]:
    """Names of targets that ask different models for different costs."""
    return {name for name, count in Counter(each.name for each in found).items() if count > 1}


def _few(names: Sequence[str]) -> str:
    """Two names at most: `a, b`, or `a and 3 others`."""
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} others"


def _targets(axes: Axes, lines: Sequence[Line], looks: Mapping[str, tuple[str, str, str]]) -> None:
    """A dotted line for each cost that is asked for, with its methods where others are asked for another cost."""
    found = _all_asked(lines)
    differing, width, ends = _differing(found), axes.get_xlim()[1], [0.0] * _ROWS  # where the names of each row end
    for each in found:
        alone = each.name in differing and len(each.methods) == 1
        colour = looks[each.label][0] if alone else INK
        whose = f" of {_few(each.methods)}" if each.name in differing and len(found) <= _MOST_NAMED else ""
        text = f"{each.name}{whose}"
        axes.axvline(each.gmacs, color=colour, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
        room = _LETTER * width * (len(text) + 1)
        fits = each.gmacs + room <= width  # else it stands before its line
        start = each.gmacs if fits else each.gmacs - room
        row = next((row for row, end in enumerate(ends) if end <= start), ends.index(min(ends)))
        ends[row] = start + room
        axes.annotate(text, (each.gmacs, 1.0), xycoords=("data", "axes fraction"), color=colour,
                      xytext=(3 if fits else -3, -2 - 9 * row), textcoords="offset points",
                      ha="left" if fits else "right", va="top", fontsize=7.5)  # fmt: skip
