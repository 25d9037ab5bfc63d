"""Rows of results.json, as all that compares or draws them reads them."""

from collections.abc import Mapping
from typing import Any

from data_prep.errors import UserError
from pipeline.trimming.target import Target

COMPARED = ("R@10", "accuracy", "CIDEr")
"""Metrics that comparisons show."""
RECALLS = tuple(f"{way} R@{k}" for way in ("TR", "IR") for k in (1, 5, 10))
"""Of which the pages of comparisons show differences too."""


def task_of(row: Mapping[str, Any]) -> str:
    """The name of the task that a row is of: two tasks of a run may ask the same (`task`) of other data."""
    return str(row.get("name") or row["task"])


def has_odd_target(row: Mapping[str, Any]) -> bool:
    """Whether a row has a target and it cannot be read: the file was changed by hand, or is damaged."""
    try:
        if row.get("target") is not None:
            Target.parse(row["target"])
    except UserError:
        return True
    return False
