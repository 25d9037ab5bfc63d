"""The table of a comparison: means over seeds, and paired differences from the reference with their intervals."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from launch.report.table import aligned

# Two-sided 95% points of Student's t, for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T95_MANY = 1.96

COMPARISON = "comparison.json"
_COMPARED = ("R@10", "accuracy", "CIDEr")
COST = "MMACs"  # billions are too coarse for the small models that are compared on one machine

Key = tuple[str, str, str]
"""Task, split and metric (with the target where there is one)."""


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    point = _T95[freedom - 1] if freedom <= len(_T95) else _T95_MANY
    return point * stdev(values) / math.sqrt(len(values))


def paired_interval(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float | None]:
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
    for key in sorted({key for run in runs.values() for key in _metrics(run)}):
        values = {seed: _metrics(run)[key] for seed, run in runs.items() if key in _metrics(run)}
        shared = [seed for seed in values if seed in reference and key in _metrics(reference[seed])]
        cell: dict[str, Any] = dict(zip(("task", "split", "metric"), key, strict=True))
        cell |= {"mean": mean(values.values()), "values": list(values.values()), "seeds": list(values)}
        if shared:
            others = [_metrics(reference[seed])[key] for seed in shared]
            cell["difference"], cell["half_width"] = paired_interval([values[seed] for seed in shared], others)
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


def _metrics(run: Mapping[str, Any]) -> dict[Key, float]:
    found = {}
    for row in run["results"]:
        if row["metric"] in _COMPARED:
            task, target = row["task"], row["target"]
            if target is not None:
                task += f" {target}" if isinstance(target, str) else f" {target:g}x"
            found[(task, row["split"], row["metric"])] = float(row["value"])
            if row["target"] is not None and row.get("gmacs") is not None:
                found[(task, row["split"], COST)] = 1e3 * float(row["gmacs"])
    return found


def comparison_text(data: Mapping[str, Any]) -> str:
    """The lines as a table for the terminal."""
    lines = lines_of(data)
    if not lines:
        return "no run is finished"
    names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    cells = [["budget", "variant", "seeds", "samples", "step ms", "GiB", *names]]
    for line in lines:
        found = [_cell(line["metrics"].get(name), line["variant"] == data["reference"]) for name in names]
        numbers = [str(len(line["seeds"])), f"{line['samples']:,.0f}", f"{line['step_ms']:.0f}"]
        cells.append([line["budget"], line["variant"], *numbers, f"{line['peak_bytes'] / 2**30:.2f}", *found])
    note = f"differences from {data['reference']} in brackets: mean over pairs of the same seed, 95% interval (t)"
    failed = [f"failed: {name}: {why}" for name, why in data["failures"].items()]
    return "\n".join([*aligned(cells, left=2), note, *failed])


def _cell(cell: Mapping[str, Any] | None, is_reference: bool) -> str:
    if cell is None:
        return "-"
    text = f"{cell['mean']:.1f}"
    if is_reference or "difference" not in cell:
        return text
    half = "" if cell["half_width"] is None else f" ± {cell['half_width']:.1f}"
    return f"{text} ({cell['difference']:+.1f}{half})"
