"""What `trimline analyse leak` says: one run sample by sample, several as means over runs."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from launch.compare_table import student_interval
from launch.report.table import aligned
from launch.report.words import ABSENT
from pipeline.measure.leak import UNPRUNED

Row = Mapping[str, Any]
_APART = ("difference", "leak")
_READING = "from unpruned: what pruning changes; leak: own caption over images without a trace of it; paired by sample"


def means_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of several runs, each sample counted within its run -> one row for each setting, task, metric and way.

    `spread` is the standard deviation over runs, `..._half_width` that of the 95% interval (t) over runs; both None
    where a setting has one run only.
    """
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["setting"], row["task"], row["metric"], row["pruned_by"]), []).append(row)
    return [_mean(group) for group in alike.values()]


def _mean(group: Sequence[Row]) -> dict[str, Any]:
    values = [row["value"] for row in group]
    found: dict[str, Any] = {name: group[0][name] for name in ("setting", "task", "metric", "pruned_by")}
    found |= {"runs": len(group), "value": mean(values), "spread": stdev(values) if len(values) > 1 else None}
    for name in _APART:
        if name in group[0]:
            apart = [row[name] for row in group]
            found[name], found[f"{name}_half_width"] = student_interval(apart, [0.0] * len(apart))
    return found


def leak_text(split: str, rows: Sequence[Row], means: Sequence[Row], exposure: Sequence[str] = ()) -> str:
    """The table for people.

    Args:
        split: What was looked at.
        rows: Of all runs.
        means: Of `means_of`.
        exposure: Whether the runs were trained on the split.
    """
    several = len({row["run"] for row in rows}) > 1
    title = f"split {split}, " + ("means over runs ± standard deviation" if several else "95% intervals over samples")
    table = _of_means(means) if several else _of_samples(rows)
    interval = "in brackets: 95% intervals" + (" (t) over runs" if several else "")
    return "\n".join([title, *exposure, *table, f"{_READING}; {interval}"])


def _of_samples(rows: Sequence[Row]) -> list[str]:
    cells = [["setting", "task", "images pruned by", "metric", "value", "from unpruned", "leak", "samples"]]
    for row in rows:
        apart = [_signed(row, name, row.get(f"{name}_low"), row.get(f"{name}_high")) for name in _APART]
        names = [row["setting"], row["task"], row["pruned_by"], row["metric"]]
        cells.append([*names, _number(row, row["value"]), *apart, str(row["samples"])])
    return aligned(cells, left=4)


def _of_means(means: Sequence[Row]) -> list[str]:
    cells = [["setting", "task", "images pruned by", "metric", "value", "from unpruned", "leak", "runs"]]
    for row in means:
        spread = "" if row["spread"] is None else f" ± {_digits(row, row['spread'])}"
        apart = [_signed(row, name, *_around(row, name)) for name in _APART]
        names = [row["setting"], row["task"], row["pruned_by"], row["metric"]]
        cells.append([*names, _number(row, row["value"]) + spread, *apart, str(row["runs"])])
    return aligned(cells, left=4)


def _around(row: Row, name: str) -> tuple[float | None, float | None]:
    half = row.get(f"{name}_half_width")
    return (None, None) if half is None else (row[name] - half, row[name] + half)


def _signed(row: Row, name: str, low: float | None, high: float | None) -> str:
    if name not in row or (name == "difference" and row["pruned_by"] == UNPRUNED):
        return ABSENT
    text = _digits(row, row[name], "+")
    return text if low is None or high is None else f"{text} ({_digits(row, low, '+')} to {_digits(row, high, '+')})"


def _number(row: Row, value: float) -> str:
    return _digits(row, value) + ("" if row["metric"].startswith("loss") else "%")


def _digits(row: Row, value: float, sign: str = "") -> str:
    return f"{value:{sign}.{3 if row['metric'].startswith('loss') else 1}f}"
