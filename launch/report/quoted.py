"""Published figures to hold results against: quoted from SmartTrim (arXiv 2305.15033), never measured here.

quoted.csv has what METHODS.md section 3 quotes: METER and BLIP of base size at 288 px, and models that were compressed
by pre-training anew, whose backbone is `any` and whose cost nobody states.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from launch.report.results import TaskTable

SOURCE = "SmartTrim, arXiv 2305.15033"
_ALIKE = 2.0
"""By which factor the cost of the untrimmed models may differ, for both to stand in one figure."""


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """One published score."""

    split: str
    metric: str
    method: str
    target: str
    """As `2.0x`; empty where there is none."""
    gmacs: float | None
    value: float

    @property
    def label(self) -> str:
        """The method with its target."""
        return f"{self.method} {self.target}".strip()


def quoted(backbone: str, task: str) -> list[Quoted]:
    """What was published of a backbone on a task, and of models that stand for themselves."""
    return [
        Quoted(
            split=row["split"],
            metric=row["metric"],
            method=row["method"],
            target=row["target"],
            gmacs=float(row["gmacs"]) if row["gmacs"] else None,
            value=float(row["value"]),
        )
        for row in _rows()
        if row["task"] == task.removesuffix("_generative") and row["backbone"] in (backbone, "any")
    ]


@cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("launch.report").joinpath("quoted.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def comparable(table: TaskTable, rows: Sequence[Quoted]) -> list[Quoted]:
    """Those that may be drawn beside a run's own: of its splits and main metric, where the models are of one size."""
    own = [line.gmacs for line in table.lines if line.target == 1.0 and line.gmacs]
    published = [row.gmacs for row in rows if row.method == "full" and row.gmacs]
    if not own or not published or not 1 / _ALIKE <= own[0] / published[0] <= _ALIKE:
        return []
    splits = {split_name(line.split) for line in table.lines}
    return [row for row in rows if row.gmacs and row.split in splits and row.metric == table.main_metric]


def split_name(split: str) -> str:
    """The name that a data set's authors give a split that lies in a folder of its data set."""
    return split.rstrip("/").rpartition("/")[2]
