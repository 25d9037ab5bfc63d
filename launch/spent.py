"""How long a run or a stage took over all its starts, those that were stopped or killed among them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SINCE = "since"
"""When what is running now was started, in seconds since 1970; gone once its time has been counted."""


def spent(record: Mapping[str, Any], files: Iterable[Path]) -> float:
    """Seconds counted so far and, of a start that was not counted because it was cut off, until it last wrote.

    Args:
        record: ``seconds``, and `SINCE` where a start has not been counted.
        files: What it writes while it goes.
    """
    counted = float(record.get("seconds") or 0.0)
    if (since := record.get(SINCE)) is None:
        return counted
    return counted + max(0.0, max(map(_written, files), default=0.0) - float(since))


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # a run that goes on moves its files
        return 0.0
