"""The table of published figures."""

import csv

import pytest

from launch.report import quoted as module
from launch.report.quoted import quoted

TEXT = module.resources.files("launch.report").joinpath("quoted.csv").read_text("utf-8")
ROWS = list(csv.reader(TEXT.splitlines()))


def test_every_row_has_as_many_cells_as_the_head() -> None:
    assert {len(row) for row in ROWS} == {len(ROWS[0])}


@pytest.mark.parametrize(("backbone", "task"), sorted({(row[0], row[1]) for row in ROWS[1:]}))
def test_what_is_published_of_a_backbone_on_a_task_can_be_read(backbone: str, task: str) -> None:
    assert all(one.method and one.value > 0 for one in quoted(backbone, task))
