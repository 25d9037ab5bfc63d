"""The figures of a batch-size scaling experiment: each pruning side by side."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter, StrMethodFormatter

from launch.report.figures import HATCHES, INK, MARKERS, OKABE_ITO, Drawing, draw

Row = Mapping[str, Any]
_COLOURS = list(OKABE_ITO.values())
_DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
_POSITIONS = (("samples", "samples"), ("step", "updates"), ("seconds", "seconds"), ("macs", "multiply-accumulates"))
_GIB = 2**30
_OTHERS = ("zero_stage", "precision", "recompute", "workers")


def scale_figures(data: Mapping[str, Any]) -> list[Drawing]:
    """Those that there are numbers for."""
    rows = [row for row in data["rows"] if row["status"] == "ok"]
    found = [
        _by_batch("throughput", "Throughput", rows, "samples_per_second", "samples a second"),
        _by_batch("memory", "Memory", rows, "peak_gib", "peak of a worker, GiB", "micro_batch"),
        _by_batch("efficiency", "Efficiency", rows, "gmacs_per_second_per_worker", "GMACs a second, each worker"),
        _by_batch("mfu", "Model FLOPs utilisation", rows, "mfu", "share of the peak"),
        _losses(data["curves"]),
        _to_goal(rows),
        _noise(data["curves"]),
        _by_batch("critical", "Critical batch", rows, "critical_batch", "samples"),
    ]
    if data["largest"] is not None:
        found += [_probes(data["largest"]), _saved(data["largest"])]
    return [drawing for drawing in found if drawing is not None]


def series_name(row: Row, rows: Sequence[Row]) -> str:
    """What tells a row from others besides its batch: pruning, and what else differs among them."""
    words = [str(row["pruning"])]
    for name in _OTHERS:
        if len({other[name] for other in rows}) > 1:
            words.append(f"{name.replace('_', ' ')} {row[name]}")
    return ", ".join(words)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(series_name(row, rows), []).append(row)
    return found


def _by_batch(
    name: str, title: str, rows: Sequence[Row], key: str, label: str, along: str = "global_batch"
) -> Drawing | None:
    """One number against the batch, a line for each pruning."""
    known = [{**row, "peak_gib": row["peak_bytes"] / _GIB} for row in rows]
    known = [row for row in known if row[key] is not None]
    if not known:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for at, (series, members) in enumerate(_series(known).items()):
            _line(axes, members, along, key, at, series)
        _batch_axis(axes, along, [row[along] for row in known])
        axes.set_ylabel(label)
        axes.set_ylim(0.0, 1.12 * max(row[key] for row in known))
        axes.legend()

    note = "Where several trials share a batch, the line joins their means."
    cells = [[series_name(row, known), row["name"], row[along], row[key]] for row in known]
    return draw(f"scale-{name}", f"{title} by batch", note, (5.2, 3.0), paint, ("series", "trial", along, key), cells)


def _line(axes: Axes, members: Sequence[Row], along: str, key: str, at: int, label: str) -> None:
    ordered = sorted(members, key=lambda row: row[along])
    grouped = [(x, [row[key] for row in same]) for x, same in groupby(ordered, key=lambda row: row[along])]
    look = {"color": _COLOURS[at % len(_COLOURS)], "linestyle": _DASHES[at % len(_DASHES)]}
    axes.plot([x for x, _ in grouped], [sum(ys) / len(ys) for _, ys in grouped], label=label, **look)
    marker = MARKERS[at % len(MARKERS)]
    points = [(row[along], row[key]) for row in ordered]
    axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, linestyle="none", color=look["color"])


def _batch_axis(axes: Axes, along: str, batches: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(batches)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_xlabel(along.replace("_", " "))


def _losses(curves: Mapping[str, Row]) -> Drawing | None:
    """The loss on the fixed batch against samples, updates, seconds and multiply-accumulates."""
    drawn = {name: curve for name, curve in curves.items() if curve["evaluations"]}
    if not drawn:
        return None
    looks = curve_looks(drawn)

    def paint(figure: Figure) -> None:
        for at, (key, label) in enumerate(_POSITIONS):
            axes = figure.add_subplot(2, 2, at + 1)
            for name, curve in drawn.items():
                points = [(point[key], point["loss"]) for point in curve["evaluations"] if point[key] is not None]
                colour, dashes, marker = looks[name]
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, marker=marker, markersize=4,
                          label=name) if points else None  # fmt: skip
            axes.set_xlabel(label)
            axes.set_ylabel("loss on the fixed batch")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)

    columns = ("trial", "step", "samples", "seconds", "macs", "loss")
    cells = [
        [name, *(point[column] for column in columns[1:])]
        for name, curve in drawn.items()
        for point in curve["evaluations"]
    ]
    note = (
        "A colour and a marker for each global batch, a kind of line for each pruning where there are several. "
        "The batch that is judged by never changes."
    )
    height = 5.2 + 0.2 * -(-len(drawn) // 3)
    return draw("scale-loss", "Loss on the fixed batch", note, (10.0, height), paint, columns, cells)


def curve_looks(curves: Mapping[str, Row]) -> dict[str, tuple[str, Any, str]]:
    """Colour and marker by global batch, dashes by pruning, or by batch too where there is one pruning.

    Curves of one batch and pruning, which differ in whatever else, have further markers.
    """
    batches = sorted({curve["global_batch"] for curve in curves.values()})
    prunings = list(dict.fromkeys(curve["pruning"] for curve in curves.values()))
    seen: dict[tuple[int, str], int] = {}
    looks = {}
    for name, curve in curves.items():
        key = (curve["global_batch"], curve["pruning"])
        seen[key] = seen.get(key, -1) + 1
        batch = batches.index(key[0])
        dashed = prunings.index(key[1]) if len(prunings) > 1 else batch
        marker = MARKERS[(batch + seen[key] * len(batches)) % len(MARKERS)]
        looks[name] = (_COLOURS[batch % len(_COLOURS)], _DASHES[dashed % len(_DASHES)], marker)
    return looks


def _to_goal(rows: Sequence[Row]) -> Drawing | None:
    """Updates and seconds until a loss that all should reach."""
    known = [row for row in rows if row["steps_to_goal"] is not None]
    if not known:
        return None
    panels = (("steps_to_goal", "updates"), ("samples_to_goal", "samples"), ("seconds_to_goal", "seconds"))

    def paint(figure: Figure) -> None:
        for place, (key, label) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            for at, (series, members) in enumerate(_series(known).items()):
                _line(axes, members, "global_batch", key, at, series)
            _batch_axis(axes, "global_batch", [row["global_batch"] for row in known])
            axes.set_ylabel(f"{label} to the loss")
            axes.set_ylim(0.0, 1.12 * max(row[key] for row in known))
        figure.axes[0].legend()

    goal = known[0]["goal"]
    note = f"Until the loss on the fixed batch was {goal:.4g}, on a straight line between two looks at it."
    columns = ("trial", "global_batch", *(key for key, _ in panels))
    cells = [[row["name"], *(row[column] for column in columns[1:])] for row in known]
    return draw("scale-goal", "Updates, samples and time to one loss", note, (10.0, 3.0), paint, columns, cells)


def _noise(curves: Mapping[str, Row]) -> Drawing | None:
    drawn = {name: curve for name, curve in curves.items() if curve["noise"]}
    if not drawn:
        return None
    looks = curve_looks(drawn)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for name, curve in drawn.items():
            colour, dashes, marker = looks[name]
            xs, ys = zip(*curve["noise"], strict=True)
            axes.plot(xs, ys, color=colour, linestyle=dashes, marker=marker, markersize=4, label=name)
        axes.set_yscale("log")
        for of in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            of(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("samples")
        axes.set_ylabel("noise scale, samples")
        axes.legend()

    note = "Trials in one part on one worker have none. Left out where the signal has not come out of the noise."
    cells = [[name, *point] for name, curve in drawn.items() for point in curve["noise"]]
    return draw(
        "scale-noise", "Gradient noise scale", note, (6.6, 3.2), paint, ("trial", "samples", "noise_scale"), cells
    )


def _probes(largest: Mapping[str, Any]) -> Drawing:
    """What each probe took, the line through the first two, and the limit."""
    found, limit = largest["found"], largest["limit_bytes"] / _GIB

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for at, entry in enumerate(found):
            colour, marker = _COLOURS[at % len(_COLOURS)], MARKERS[at % len(MARKERS)]
            for fits, face in ((True, colour), (False, "none")):
                probes = [probe for probe in entry["probes"] if probe["fits"] == fits]
                axes.plot([probe["batch"] for probe in probes], [probe["peak_bytes"] / _GIB for probe in probes],
                          marker=marker, linestyle="none", color=colour, markerfacecolor=face,
                          label=f"{entry['pruning']}{'' if fits else ', over the limit'}")  # fmt: skip
            if entry["sample_bytes"] is not None and entry["largest"] is not None:
                ends = [0, entry["largest"]]
                line = [(entry["fixed_bytes"] + entry["sample_bytes"] * batch) / _GIB for batch in ends]
                axes.plot(ends, line, color=colour, linestyle=_DASHES[at % len(_DASHES)])
        axes.axhline(limit, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_xlabel("micro-batch")
        axes.set_ylabel("peak of a worker, GiB")
        axes.set_ylim(bottom=0.0)
        axes.legend()

    note = "Lines go through the first two probes of each; dotted: the limit. A hollow mark is where a probe was ended."
    cells = [[entry["pruning"], probe["batch"], int(probe["fits"]), probe["peak_bytes"] / _GIB]
             for entry in found for probe in entry["probes"]]  # fmt: skip
    columns = ("pruning", "micro_batch", "fits", "peak_gib")
    return draw("scale-largest", "Memory of a micro-batch", note, (5.6, 3.2), paint, columns, cells)


def _saved(largest: Mapping[str, Any]) -> Drawing | None:
    """Bytes that a sample keeps for the backward, by part of the model."""
    found = largest["found"]
    parts = list(dict.fromkeys(part for entry in found for part in entry["saved_bytes"]))
    if not parts:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = [0.0] * len(found)
        for at, part in enumerate(parts):
            widths = [entry["saved_bytes"].get(part, 0.0) / 2**20 for entry in found]
            axes.barh([entry["pruning"] for entry in found], widths, left=left, label=part,
                      color=_COLOURS[at % len(_COLOURS)],
                      hatch=HATCHES[at % len(HATCHES)], edgecolor="#ffffff", linewidth=0.6)  # fmt: skip
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("MiB a sample")
        figure.legend(loc="outside lower center", ncols=5)

    cells = [[entry["pruning"], part, entry["saved_bytes"].get(part, 0.0)] for entry in found for part in parts]
    note = "Each storage once, in the module that kept it first; the rest is kept by the losses."
    height = 1.3 + 0.4 * len(found) + 0.2 * -(-len(parts) // 5)
    columns = ("pruning", "part", "bytes_per_sample")
    return draw("scale-saved", "Bytes kept for the backward", note, (7.0, height), paint, columns, cells)
