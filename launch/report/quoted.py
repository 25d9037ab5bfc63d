"""Published figures to hold results against: quoted from SmartTrim (arXiv 2305.15033), never measured here.

quoted.csv has what METHODS.md section 3 quotes: METER and BLIP of base size at 288 px, and models that were compressed
by pre-training anew, whose backbone is `any` and whose cost nobody states. Recall on Flickr30K is published for each
way as the mean over R@1, R@5 and R@10; the mean of both is that of all six (`mean_recall`), and ours: `mean_of` has
what is quoted, IR and TR.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """With its data set (`coco/test`) where other data of the same task has splits of the same name."""
    metric: str
    method: str
    target: str
    """As `2.0x`; empty where there is none."""
    gmacs: float | None
    value: float
    mean_of: tuple[float, ...] = ()
    """What is published, where the value is our mean of it: recall of IR and of TR."""

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
            mean_of=tuple(map(float, row["mean_of"].split())),
        )
        for row in _rows()
        if row["task"] == task.removesuffix("_generative") and row["backbone"] in (backbone, "any")
    ]


@cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("launch.report").joinpath("quoted.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def of_data(rows: Sequence[Quoted], table: TaskTable, data: str = "") -> list[Quoted]:
    """Without those of a data set that a run has not: beside whose splits they would say nothing."""
    splits = {line.split for line in table.lines}
    return [row for row in rows if "/" not in row.split or any(_is_of(row.split, split, data) for split in splits)]


def comparable(table: TaskTable, rows: Sequence[Quoted], data: str = "") -> list[Quoted]:
    """Those that may be drawn beside a run's own: of its splits and main metric, where the models are of one size.

    Args:
        table: Of the run.
        rows: What was published of its backbone and task.
        data: Name of the run's data set, whose splits have none in their names.

    Returns:
        With the run's own names of splits.
    """
    own = [line.gmacs for line in table.lines if line.target == 1.0 and line.gmacs]
    published = [row.gmacs for row in rows if row.method == "full" and row.gmacs]
    if not own or not published or not 1 / _ALIKE <= own[0] / published[0] <= _ALIKE:
        return []
    rows = [row for row in rows if row.gmacs and row.metric == table.main_metric]
    splits = dict.fromkeys(line.split for line in table.lines)
    return [replace(row, split=split) for split in splits for row in rows if _is_of(row.split, split, data)]


def _is_of(published: str, split: str, data: str) -> bool:
    """Whether a run's split is a published one; those of several data sets lie in folders of these."""
    folder, _, name = split.strip("/").rpartition("/")
    return published == (f"{folder.rpartition('/')[2] or data}/{name}" if "/" in published else name)
