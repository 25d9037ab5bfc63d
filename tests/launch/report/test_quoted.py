"""The table of published figures."""

import csv
import json
from pathlib import Path

import pytest

from launch.report import quoted as module
from launch.report import write_report
from launch.report.quoted import comparable, quoted
from launch.report.results import group_results

TEXT = module.resources.files("launch.report").joinpath("quoted.csv").read_text("utf-8")
ROWS = list(csv.reader(TEXT.splitlines()))


def test_every_row_has_as_many_cells_as_the_head() -> None:
    assert {len(row) for row in ROWS} == {len(ROWS[0])}


@pytest.mark.parametrize(("backbone", "task"), sorted({(row[0], row[1]) for row in ROWS[1:]}))
def test_what_is_published_of_a_backbone_on_a_task_can_be_read(backbone: str, task: str) -> None:
    assert all(one.method and one.value > 0 for one in quoted(backbone, task))


def test_recall_is_our_mean_of_what_is_quoted() -> None:
    means = [one for one in quoted("meter", "retrieval") if one.metric == "mean_recall"]
    assert [one.mean_of for one in means] == [(92.1, 97.7), (91.6, 97.8), (90.5, 97.5), (89.0, 96.4)]
    assert all(one.value == pytest.approx(sum(one.mean_of) / 2, abs=0.051) for one in means)
    assert not any(one.mean_of for task in ("nlvr2", "vqa", "snli_ve") for one in quoted("meter", task))


def test_the_page_tells_our_means_from_what_is_quoted_and_base_size_from_smaller_models(finished_run: Path) -> None:
    (finished_run / "config.yaml").write_text("model: {backbone: meter}\ndata: {name: flickr30k}\n")
    one = {"stage": "evaluate", "method": "full", "target": 1.0, "value": 80.0, "gmacs": 48.0}
    rows = [{**one, "task": "retrieval", "split": "test", "metric": "mean_recall"},
            {**one, "task": "nlvr2", "split": "dev", "metric": "accuracy"}]  # fmt: skip
    (finished_run / "results.json").write_text(json.dumps([each | {"target": t, "gmacs": g} for each in rows
                                                           for t, g in ((1.0, 48.0), (2.0, 24.0))]))  # fmt: skip
    recall, nlvr2 = write_report(finished_run).read_text().split("Published figures on ")[1:3]
    assert "mean of the quoted IR 92.1, TR 97.7" in recall and "our mean of both" in recall
    assert "pre-trained anew" not in recall and "our mean" not in nlvr2.split("</details>")[0]
    assert "EfficientVLM" in nlvr2 and "pre-trained anew, most of them smaller, whose cost is not stated" in nlvr2
    drawn = (finished_run / "figures/pareto-retrieval.svg").read_text()
    assert "SmartTrim, mean of quoted" in drawn and "means of what is quoted for each way" in drawn


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
