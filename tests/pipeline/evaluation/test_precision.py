"""Evaluation in bf16: near float32's scores, by which features and matching are still compared, and no NaN."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.process import Process
from tests.pipeline.evaluation.exports import export, split, statement_export
from tests.pipeline.evaluation.test_retrieval import spoil

IMAGES = 23
CASES: list[tuple[str, dict[str, Any]]] = [
    ("retrieval", {"rerank": 4}),
    ("zero_shot", {"label_field": "number", "classes": ("red", "green", "blue")}),
    ("statement", {}),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(tmp_path_factory.mktemp("precision") / "test", IMAGES)


def asked(folder: Path, data: Path, task: str, more: dict[str, Any]) -> Evaluation:
    (statement_export if task == "statement" else export)(folder)
    return Evaluation(model=folder, task=task, split=str(data), **more)


@pytest.mark.parametrize(("task", "more"), CASES)
def test_bf16_scores_as_float32_but_for_what_lies_close(
    data: Path, tmp_path: Path, task: str, more: dict[str, Any]
) -> None:
    evaluation = asked(tmp_path / "e", data, task, more)
    one = evaluate_export(evaluation, Process())
    other = evaluate_export(replace(evaluation, precision="bf16"), Process())
    assert (one["precision"], other["precision"]) == ("float32", "bf16")
    assert [score["metric"] for score in other["scores"]] == [score["metric"] for score in one["scores"]]
    for mine, theirs in zip(other["scores"], one["scores"], strict=True):
        # 1 of 16 images or of 46 statements may change its side.
        assert mine["value"] == pytest.approx(theirs["value"], abs=100 / 15)
    assert other["gmacs"]["mean"] == pytest.approx(one["gmacs"]["mean"], rel=0.02)


@pytest.mark.parametrize(("task", "more"), CASES)
def test_nan_in_bf16_is_an_error(data: Path, tmp_path: Path, task: str, more: dict[str, Any]) -> None:
    evaluation = asked(tmp_path / "e", data, task, more)
    spoil(tmp_path / "e", "cls_head.bias" if task == "statement" else "vision_proj.weight")
    with pytest.raises(UserError, match="not finite"):
        evaluate_export(replace(evaluation, precision="bf16"), Process())
