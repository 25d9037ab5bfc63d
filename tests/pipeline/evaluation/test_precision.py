"""Evaluation in bf16: near float32's scores, by which features and matching are still compared, and no NaN."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.engine import EngineConfig
from pipeline.evaluate import evaluate
from pipeline.evaluation.config import EvaluateConfig, Trained
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.stage import Stage
from tests.pipeline.evaluation.exports import (
    TOKENIZER,
    answers_export,
    caption_export,
    export,
    loader_of,
    sized,
    split,
    statement_export,
)
from tests.pipeline.evaluation.test_retrieval import spoil

IMAGES = 23
ANSWERS = ("yes", "no", "1", "2", "3", "red", "blue", "green")
FULL: list[tuple[str, dict[str, Any]]] = [
    ("retrieval", {"rerank": 4}),
    ("zero_shot", {"label_field": "number", "classes": ("red", "green", "blue")}),
]
TRIMMED = ("statement", "captioning", "vqa", "vqa_generative")
"""Of models whose trimmers keep about half."""
CASES = [*FULL, *((task, {}) for task in TRIMMED)]
ALIKE = {"captioning": 0.5, "vqa": 0.8, "vqa_generative": 0.8}
"""Share of what a fresh model says that must be the same; the beams of a caption lie closest together."""
_WORDS = "backbone.text_decoder.cls.predictions.transform.dense.bias"
SPOILT = {"statement": "cls_head.bias", "vqa": "cls_head.3.bias", "captioning": _WORDS, "vqa_generative": _WORDS}
"""What of each model is made NaN."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split for all but questions, and drawn questions beside it."""
    root = tmp_path_factory.mktemp("precision")
    write_published("vqa", root / "raw", {"val": 8}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(root / "raw"), shard_samples=10), root / "questions", workers=1)
    return split(root / "test", IMAGES)


@pytest.fixture(autouse=True)
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are compared as they are written; their scores take minutes."""
    monkeypatch.setenv("PATH", str(tmp_path))


def asked(folder: Path, data: Path, task: str, more: dict[str, Any]) -> Evaluation:
    if task in ALIKE:
        more = {"predictions": folder.parent / "said.json"}
    if task == "captioning":
        caption_export(folder)
    elif task in ALIKE:
        answers_export(folder, task, ANSWERS)  # type: ignore[arg-type]
        data = data.parent / "questions" / "val"
    else:
        (statement_export if task in TRIMMED else export)(folder)
    return Evaluation(model=folder, task=task, split=str(data), **more)


def evaluated(evaluation: Evaluation) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """The result, and what was said where it is written."""
    found = evaluate_export(evaluation, Process())
    return found, [] if evaluation.predictions is None else json.loads(evaluation.predictions.read_text())


@pytest.mark.parametrize(("task", "more"), CASES)
def test_bf16_scores_as_float32_but_for_what_lies_close(
    data: Path, tmp_path: Path, task: str, more: dict[str, Any]
) -> None:
    evaluation = asked(tmp_path / "e", data, task, more)
    one, said = evaluated(evaluation)
    other, also = evaluated(replace(evaluation, precision="bf16"))
    assert (one["precision"], other["precision"]) == ("float32", "bf16")
    assert [score["metric"] for score in other["scores"]] == [score["metric"] for score in one["scores"]]
    if task in ALIKE:
        same = [mine == theirs for mine, theirs in zip(also, said, strict=True)]
        assert sum(same) >= ALIKE[task] * len(same) > 0
    else:
        for mine, theirs in zip(other["scores"], one["scores"], strict=True):
            # 1 of 16 images or of 46 statements may change its side.
            assert mine["value"] == pytest.approx(theirs["value"], abs=100 / 15)
    assert other["gmacs"]["mean"] == pytest.approx(one["gmacs"]["mean"], rel=0.02)


@pytest.mark.parametrize(("task", "more"), CASES)
def test_nan_in_bf16_is_an_error(data: Path, tmp_path: Path, task: str, more: dict[str, Any]) -> None:
    evaluation = asked(tmp_path / "e", data, task, more)
    spoil(tmp_path / "e", SPOILT.get(task, "vision_proj.weight"))
    with pytest.raises(UserError, match="not finite"):
        evaluate_export(replace(evaluation, precision="bf16"), Process())


def test_a_run_evaluates_in_bf16_as_the_command_does(data: Path, tmp_path: Path) -> None:
    folders = {"retrieval": export(tmp_path / "pretrain"), "statement": statement_export(tmp_path / "trim")}
    TOKENIZER.save(tmp_path / "words")
    inputs = Inputs(
        data=data.parent, tokenizer=tmp_path / "words", loader=loader_of(sized("albef")), engine=EngineConfig(), seed=0
    )
    config = EvaluateConfig(retrieval_pairs=IMAGES, retrieval_captions="all", rerank=4)
    trained, cost = Trained(folders["retrieval"], {"trim": folders["statement"]}), {}
    for precision in ("float32", "bf16"):
        given = replace(config, precision=precision)
        rows = evaluate(given, trained, inputs, Stage(folder=tmp_path / precision, process=Process()))
        for task, folder in folders.items():
            what = Evaluation(model=folder, task=task, split=str(data), rerank=4, precision=precision)
            found = evaluate_export(what, Process())
            values = {score["metric"]: score["value"] for score in found["scores"]}
            own = [row for row in rows if row["task"] == task]
            assert own and all(row["value"] == values[row["metric"]] for row in own)
            assert own[0]["gmacs"] == pytest.approx(found["gmacs"]["mean"], rel=1e-12)
        cost[precision] = own[0]["gmacs"]
    assert cost["bf16"] != cost["float32"]  # trimmers decide by a rounding otherwise here and there
