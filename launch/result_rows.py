"""Rows of results.json, as all that compares or draws them reads them."""

from collections.abc import Mapping
from typing import Any


def task_of(row: Mapping[str, Any]) -> str:
    """The name of the task that a row is of: two tasks of a run may ask the same (`task`) of other data."""
    return str(row.get("name") or row["task"])
