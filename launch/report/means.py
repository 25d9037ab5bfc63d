"""Means over the seeds of a comparison's runs, for fronts: of the seeds that all variants have."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from launch.compare_table import half_width
from launch.report.results import in_percent
from launch.result_rows import task_of

FEWEST_SEEDS = 3
"""Student's interval of two seeds is 12.7 times their standard error: it would hide all else in a figure."""

_Seeds = Mapping[int, Mapping[str, Any]]
"""Rows of results.json by seed."""


def mean_rows(runs: Sequence[Mapping[str, Any]], budget: str) -> list[dict[str, Any]]:
    """Rows as of results.json: means over seeds of what the variants reached at their targets, for a Pareto front.

    Of each task they are over the seeds that all variants have, else over those that most have; a variant without these
    is averaged over its own and marked "apart". "seeds" are those of the mean, "beside" the others that there are.

    Args:
        runs: Of comparison.json.
        budget: Which of them.
    """
    tasks: dict[str, dict[tuple[Any, ...], dict[int, Mapping[str, Any]]]] = {}
    for run in runs:
        for row in run["results"] if run["budget"] == budget else ():
            if row["target"] is not None and row.get("gmacs") is not None:
                key = run["variant"], row["target"], task_of(row), row["split"], row["metric"]
                tasks.setdefault(task_of(row), {}).setdefault(key, {})[run["seed"]] = row
    return [_mean_row(key, rows, _common(own)) for own in tasks.values() for key, rows in own.items()]


def _common(groups: Mapping[tuple[Any, ...], _Seeds]) -> set[int]:
    """The seeds that all variants have, else those of most variants."""
    variants: dict[str, set[int]] = {}
    for (variant, *_), rows in groups.items():
        variants[variant] = variants.get(variant, set(rows)) & set(rows)
    if shared := set.intersection(*variants.values()):
        return shared
    counts = Counter(seed for seeds in variants.values() for seed in seeds)
    if not counts:
        return set()
    most = min(counts, key=lambda seed: (-counts[seed], seed))
    return set.intersection(*(seeds for seeds in variants.values() if most in seeds))


def _mean_row(key: tuple[Any, ...], rows: _Seeds, common: set[int]) -> dict[str, Any]:
    apart = not common <= rows.keys() or not common
    seeds = sorted(rows if apart else common)
    used = [rows[seed] for seed in seeds]
    named = dict(zip(("method", "target", "task", "split", "metric"), key, strict=True))
    numbers = _interval([float(row["value"]) for row in used], str(named["metric"]))
    numbers["gmacs"] = mean(float(row["gmacs"]) for row in used)
    if all(row.get("full_gmacs") for row in used):
        numbers["full_gmacs"] = mean(float(row["full_gmacs"]) for row in used)
    told = {"seeds": seeds, "beside": sorted(rows.keys() - set(seeds)), "apart": apart}
    return {**named, "stage": named["method"], **told, **numbers}


def _interval(values: Sequence[float], metric: str) -> dict[str, float | None]:
    """The mean with Student's interval, where there are seeds enough for one; a percentage's ends at 0 and 100."""
    center, half = mean(values), half_width(values)
    if half is None or len(values) < FEWEST_SEEDS:
        return {"value": center, "low": None, "high": None}
    low, high = center - half, center + half
    if in_percent(metric):
        low, high = max(0.0, low), min(100.0, high)
    return {"value": center, "low": low, "high": high}
