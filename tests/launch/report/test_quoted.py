"""The table of published figures."""

import csv

import pytest

from launch.report import quoted as module
from launch.report.quoted import comparable, quoted
from launch.report.results import group_results

TEXT = module.resources.files("launch.report").joinpath("quoted.csv").read_text("utf-8")
ROWS = list(csv.reader(TEXT.splitlines()))


def test_every_row_has_as_many_cells_as_the_head() -> None:
    assert {len(row) for row in ROWS} == {len(ROWS[0])}


@pytest.mark.parametrize(("backbone", "task"), sorted({(row[0], row[1]) for row in ROWS[1:]}))
def test_what_is_published_of_a_backbone_on_a_task_can_be_read(backbone: str, task: str) -> None:
    assert all(one.method and one.value > 0 for one in quoted(backbone, task))


@pytest.mark.parametrize(
    ("backbone", "task", "split", "metric", "gmacs", "data", "values"),
    [
        ("meter", "retrieval", "test", "mean_recall", 48.0, "flickr30k", [94.9, 94.7, 94.0, 92.7]),
        ("meter", "retrieval", "coco/test", "mean_recall", 48.0, "flickr30k", []),
        ("blip", "captioning", "coco/test", "CIDEr", 250.0, "", [131.3, 132.3, 129.1, 125.4]),
        ("blip", "captioning", "nocaps/val", "CIDEr", 250.0, "", [107.9, 107.8, 107.6, 105.6]),
        ("blip", "captioning", "val", "CIDEr", 250.0, "coco", []),
    ],
)
def test_published_rows_stand_beside_splits_of_their_own_data_set(
    backbone: str, task: str, split: str, metric: str, gmacs: float, data: str, values: list[float]
) -> None:
    row = {"method": "full", "target": 1.0, "task": task, "split": split, "metric": metric, "value": 1.0}
    (table,) = group_results([{**row, "gmacs": gmacs}])
    shown = comparable(table, quoted(backbone, task), data)
    assert [(each.split, each.value) for each in shown] == [(split, value) for value in values]
