"""Numbers and times as a reader wants them; shared by the terminal table, the figures and the page."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from launch.report.results import Cell, Line, in_percent

ABSENT = "–"  # noqa: RUF001 - an en dash is how a table says that nothing was measured


def metric_name(metric: str) -> str:
    """A metric's name with its unit, as `accuracy %`."""
    return f"{metric.replace('_', ' ')} %" if in_percent(metric) else metric.replace("_", " ")


def metric_number(metric: str, value: float) -> str:
    """A metric's value: percentages with one decimal, others with four digits."""
    return f"{value:.1f}" if in_percent(metric) else number(value)


def cell_text(metric: str, cell: Cell | None, interval: bool = True) -> str:
    """A cell as `75.3 (72.1 to 78.2)`, or the value alone."""
    if cell is None:
        return ABSENT
    text = metric_number(metric, cell.value)
    if not interval or cell.low is None or cell.high is None:
        return text
    return f"{text} ({metric_number(metric, cell.low)} to {metric_number(metric, cell.high)})"


def number(value: float | None) -> str:
    """A number with four digits at most, thousands grouped: `0.0001234`, `12.35`, `12,408`."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def seeds_in_words(seeds: Sequence[int]) -> str:
    """Seeds as `0 1 2`."""
    return " ".join(map(str, seeds))


def cost(line: Line) -> str:
    """The mean multiply-accumulates of a line, in G."""
    return ABSENT if line.gmacs is None else f"{line.gmacs:.4g}"


def ratio(line: Line) -> str:
    """The cost as a share of the untrimmed model's."""
    return ABSENT if line.ratio is None else f"{line.ratio:.2f}"


def wanted(line: Line) -> str:
    """The target's amount with its unit: `2.00x`, `12 GMACs`."""
    return ABSENT if line.wanted is None else _amount(line.wanted, line.unit)


def reached(line: Line) -> str:
    """What was reached of it: `1.97x (-1.5%)`, `35.2 ms (+0.6%; 34.9 to 35.6)`."""
    if line.reached is None or line.miss is None:
        return ABSENT
    text = f"{_amount(line.reached, line.unit)} ({line.miss:+.1%}"
    if line.reached_low is not None and line.reached_high is not None:
        text += f"; {line.reached_low:.3g} to {line.reached_high:.3g}"
    return text + ")"


def times(value: float | None) -> str:
    """How many times less: `1.31x`."""
    return ABSENT if value is None else f"{value:.2f}x"


def _amount(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "x" else f"{value:.4g} {unit}"


def duration(seconds: float | None) -> str:
    """A length of time: `0.4 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return ABSENT
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(value: Any) -> str:
    """A point in time in UTC, from seconds since 1970 or an ISO text; other texts stay as they are."""
    if value is None or value == "":
        return ABSENT
    when = as_moment(value)
    return str(value) if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def as_moment(value: Any) -> datetime | None:
    """A point in time in UTC, or None where the value is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, tz=UTC)
        except (ValueError, OverflowError, OSError):  # of no year that there is
            return None
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
