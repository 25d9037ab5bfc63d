"""The tables of a comparison: means over seeds, and differences with their intervals.

There are two kinds of these. Over seeds: what would another training give? Over test instances, where outcomes are kept
(`launch.paired`): what would these very models do with other instances?
"""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from launch.paired import RESAMPLED, points, score_of
from launch.report.table import aligned
from launch.report.words import seeds_in_words
from launch.result_rows import COMPARED, RECALLS

# Two-sided 95% points of Student's t, for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T95_MANY = 1.96

COMPARISON = "comparison.json"
COST = "GMACs"

Key = tuple[str, str, str]
"""Task, split and metric (with the target where there is one)."""


def score_order(key: Key) -> tuple[list[str | float], str, str]:
    """What scores are sorted by: a target counts as a number, so that 2x comes before 2.5x, and that before 10x."""
    task, split, metric = key
    parts = re.split(r"(\d+(?:\.\d+)?)", task)  # every second one is a number
    return [float(part) if at % 2 else part for at, part in enumerate(parts)], split, metric


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    point = _T95[freedom - 1] if freedom <= len(_T95) else _T95_MANY
    return point * stdev(values) / math.sqrt(len(values))


def student_interval(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float | None]:
    """Mean of paired differences, and the half width of its 95% interval; None for a single pair."""
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    return mean(differences), half_width(differences)


def lines_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line for each budget and variant: speed, memory, and each metric with its difference from the reference.

    Only seeds that the variant and the reference both finished are compared.
    """
    lines = []
    for budget in dict.fromkeys(run["budget"] for run in data["runs"]):
        by_variant: dict[str, dict[int, Mapping[str, Any]]] = {}
        for run in data["runs"]:
            if run["budget"] == budget:
                by_variant.setdefault(run["variant"], {})[run["seed"]] = run
        reference = by_variant.get(data["reference"], {})
        for variant, runs in by_variant.items():
            lines.append(_line(budget, variant, runs, reference))
    return lines


def _line(
    budget: str, variant: str, runs: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    metrics = {}
    for key in sorted({key for run in runs.values() for key in _metrics(run)}, key=score_order):
        values = {seed: _metrics(run)[key] for seed, run in runs.items() if key in _metrics(run)}
        shared = [seed for seed in values if seed in reference and key in _metrics(reference[seed])]
        cell: dict[str, Any] = dict(zip(("task", "split", "metric"), key, strict=True))
        cell |= {"mean": mean(values.values()), "values": list(values.values()), "seeds": list(values)}
        if shared:
            others = [_metrics(reference[seed])[key] for seed in shared]
            there = [seed for seed in reference if key in _metrics(reference[seed])]
            cell |= {"pairs": sorted(shared), "even": set(shared) == set(values) == set(there)}
            cell["difference"], cell["half_width"] = student_interval([values[seed] for seed in shared], others)
        metrics[" ".join(key)] = cell
    each = list(runs.values())
    return {
        "budget": budget,
        "variant": variant,
        "seeds": sorted(runs),
        "samples": mean(run["samples"] for run in each),
        "step_ms": mean(run["step_ms"] for run in each),
        "peak_bytes": max(run["peak_bytes"] for run in each),
        "metrics": metrics,
    }


def cells_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A cell of each score that any of the lines has, in their order, by its name."""
    found = {name: cell for line in lines for name, cell in line["metrics"].items()}
    return dict(
        sorted(found.items(), key=lambda pair: score_order((pair[1]["task"], pair[1]["split"], pair[1]["metric"])))
    )


def scores_of(lines: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Each score of each variant as a flat row: its mean, the seeds' values, its difference from the reference.

    The reference's difference from itself, which nothing was measured for, is None.
    """
    none = {"difference": None, "half_width": None}
    return [
        {"budget": line["budget"], "variant": line["variant"], **cell, **(none if line["variant"] == reference else {})}
        for line in lines
        for cell in line["metrics"].values()
    ]


def paired_lines(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Differences on the same test instances (`launch.paired.Answers`), each with the interval over seeds beside it.

    `half_width` is half of Student's 95% interval of the seeds' own differences; None for a single seed.
    """
    return [{**row, "half_width": half_width(row["by_seed"])} for row in data.get("paired", ())]


def _metrics(run: Mapping[str, Any]) -> dict[Key, float]:
    found = {}
    for row in run["results"]:
        if row["metric"] in COMPARED:
            task, split, metric = score_of(row)
            found[(task, split, metric)] = float(row["value"])
            if row["target"] is not None and row.get("gmacs") is not None:
                found[(task, split, COST)] = float(row["gmacs"])
    return found


def comparison_text(data: Mapping[str, Any]) -> str:
    """The lines as a table for the terminal."""
    lines = lines_of(data)
    if not lines:
        return "no run is finished"
    names = list(cells_of(lines))
    cells = [["budget", "variant", "seeds", "samples", "step ms", "GiB", *names]]
    for line in lines:
        found = [_cell(line, name, data["reference"]) for name in names]
        numbers = [seeds_in_words(line["seeds"]), f"{line['samples']:,.0f}", f"{line['step_ms']:.0f}"]
        cells.append([line["budget"], line["variant"], *numbers, f"{line['peak_bytes'] / 2**30:.2f}", *found])
    note = f"differences from {data['reference']} in brackets: mean over pairs of the same seed, 95% interval (t)"
    note = "\n".join([note, *uneven_note(lines, data["reference"])])
    failed = [f"failed: {name}: {why}" for name, why in data["failures"].items()]
    return "\n".join([*aligned(cells, left=2), note, *_paired_text(data), *failed])


PAIRED_NOTE = (
    f"{RESAMPLED} Over seeds: the mean of each seed's difference with Student's 95% interval, which tells what other "
    "trainings would do."
)
"""What the columns of differences on the same test instances mean."""


def _paired_text(data: Mapping[str, Any]) -> list[str]:
    """Differences on the same test instances, where there are any, and why others are not there."""
    missing = list(data.get("unpaired", ()))
    lines = [
        line for line in paired_lines(data) if line.get("metric") not in RECALLS
    ]  # on the page, which can be sorted
    if not lines:
        return missing
    cells = [["variant", "score", "against", "difference", "over seeds", "seeds", "instances in groups"]]
    for line in lines:
        variant = line["variant"] if line["budget"] == lines[0]["budget"] else f"{line['variant']}, {line['budget']}"
        seeds, instances = str(len(line["seeds"])), f"{line['instances']:,} in {line['groups']:,}"
        cells.append([variant, line["score"], line["against"], *paired_words(line), seeds, instances])
    return ["", "on the same test instances", *aligned(cells, left=3), PAIRED_NOTE, *missing]


def paired_words(line: Mapping[str, Any]) -> tuple[str, str]:
    """A difference as `-0.61 (-1.13 to -0.09)`, and that over seeds as `-0.61 ± 0.90`, or nothing."""
    over = "" if line["half_width"] is None else f"{mean(line['by_seed']):+.2f} ± {line['half_width']:.2f}"
    return points(line), over


def difference_in_words(cell: Mapping[str, Any]) -> str:
    """A difference as `+0.6 ± 0.9`; with its seeds where these are not those of both means: `+0.6 of 0 1`."""
    half = "" if cell["half_width"] is None else f" ± {_digits(cell, cell['half_width'])}"
    return f"{_digits(cell, cell['difference'], '+')}{half}" + (
        "" if cell["even"] else f" of {seeds_in_words(cell['pairs'])}"
    )


def mean_in_words(cell: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """A mean as `70.1`; with its seeds where not all of the line's have the score: `70.1 of 0 1`."""
    whole = sorted(cell["seeds"]) == sorted(line["seeds"])
    return _digits(cell, cell["mean"]) + ("" if whole else f" of {seeds_in_words(sorted(cell['seeds']))}")


def _digits(cell: Mapping[str, Any], value: float, sign: str = "") -> str:
    """A number of a score: one decimal, of a cost as many as give its mean four digits, as in a run's report."""
    if cell["metric"] != COST:
        return f"{value:{sign}.1f}"
    decimals = 3 - math.floor(math.log10(cell["mean"])) if cell["mean"] > 0 else 3
    # Means of equal costs differ by rounding, which is no digit of theirs; + 0.0, for there is no -0 either.
    return f"{round(value, decimals) + 0.0:{sign}.4g}"


def uneven_note(lines: Sequence[Mapping[str, Any]], reference: str) -> list[str]:
    """What tells variants of different seeds apart; nothing where all have the same."""
    cells = [cell for line in lines if line["variant"] != reference for cell in line["metrics"].values()]
    if all(cell.get("even", True) for cell in cells):
        return []
    return [
        "A mean is over all seeds of its variant, which are not the same everywhere: what tells variants apart is the "
        "differences, with the seeds that they are of, not the means."
    ]


def _cell(line: Mapping[str, Any], name: str, reference: str) -> str:
    if (cell := line["metrics"].get(name)) is None:
        return "-"
    text = mean_in_words(cell, line)
    if line["variant"] == reference or "difference" not in cell:
        return text
    return f"{text} ({difference_in_words(cell)})"
