"""Runs of every backbone and pruning method, each of seconds, through the commands that users call."""

import json
from pathlib import Path

import pytest

from data_prep.files import read_json
from launch.cli import main
from tests.pipeline.small import OTHER_BACKBONES

TINY = str(Path(__file__).parent / "tiny.yaml")
ALONE = ["--trim.targets=[]", "--evaluate.statement_splits=[]"]
LOSSES = {"blip": {"itc", "itm", "lm"}, "meter": {"itm", "mlm"}, "clip": {"itc"}}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def sizes(backbone: str) -> list[str]:
    keys = {"backbone": backbone, **OTHER_BACKBONES[backbone]}
    return [f"--model.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


@pytest.mark.parametrize("backbone", list(OTHER_BACKBONES))
def test_a_whole_run_of_another_backbone(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*sizes(backbone), *(ALONE if backbone == "clip" else ["--trim.targets=[1.0, 1.3]"])]
    assert main(["run", TINY, "--out", str(tmp_path / "run"), *words]) == 0, capsys.readouterr().err
    first = lines(tmp_path / "run" / "stages" / "pretrain")[0]
    assert {name.partition("/")[2] for name in first if name.startswith("loss/")} == LOSSES[backbone]
    rows = read_json(tmp_path / "run" / "results.json")
    assert {row["task"] for row in rows} == ({"retrieval"} if backbone == "clip" else {"retrieval", "statement"})
    assert {row["method"] for row in rows if row["task"] == "retrieval"} == {backbone}
    pruned = {row["unpruned_gmacs"] > row["full_gmacs"] for row in rows if row["task"] == "statement"}
    assert pruned == {"blip": {False}, "meter": {True}, "clip": set()}[backbone]  # METER keeps pre-training's pruning
    assert all(row["gmacs"] > 0 and 0 <= row["low"] <= row["value"] <= row["high"] <= 100 for row in rows)


def test_a_backbone_without_fusion_judges_no_statements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", TINY, "--out", str(tmp_path / "run"), *sizes("clip")]) == 2
    said = capsys.readouterr().err
    assert "clip has no fusion layers" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("backbone", "why"), [("blip", "tells captions up to"), ("clip", "pools texts at")])
def test_texts_want_an_end_where_it_is_looked_at(
    backbone: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer.end=false", "--trim.targets=[]", "--evaluate.statement_splits=[]"]
    assert main(["run", TINY, "--out", str(tmp_path / "run"), *sizes(backbone), *words]) == 2
    assert f"tokenizer.end=false does not go with model.backbone={backbone}, which {why}" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["evit", "tome", "flip"])
def test_a_whole_pretraining_with_another_method(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--pretrain.pruning.method={method}", "--pretrain.pruning.evit.layers=[1, 2]"]
    words += ["--pretrain.pruning.tome.merged_per_layer=2", "--pretrain.pruning.prune_momentum=true"]
    assert main(["pretrain", TINY, "--out", str(tmp_path / "run"), *words]) == 0, capsys.readouterr().err
    assert all(line["loss"] > 0 for line in lines(tmp_path / "run" / "stages" / "pretrain"))
