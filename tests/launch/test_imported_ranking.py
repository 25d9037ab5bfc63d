"""METER's fine-tuned weights rank by the head that they have learned, or not at all."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.cli import main
from launch.given import check_given, read_run
from pipeline.evaluation.opened import open_export
from pipeline.models.meter import Meter
from pipeline.weights.folders import import_weights, load_model
from tests.pipeline.evaluation.exports import split
from tests.pipeline.evaluation.test_imported import HINTS, _words_of_roberta, official_meter

TINY = Path("tests/launch/tiny.yaml")
HEADS = ("--vision-heads", "4", "--text-heads", "4", "--fusion-heads", "4")


def official(folder: Path, without: str = "none", **more: Tensor) -> tuple[Meter, Path]:
    """METER as its authors store it, less what begins with `without`."""
    model, _ = official_meter(folder / "w.ckpt", 5)
    tensors = torch.load(folder / "w.ckpt", weights_only=True)["state_dict"]
    tensors = {name: each for name, each in tensors.items() if not name.startswith(without)}
    torch.save({"state_dict": tensors | more}, folder / "w.ckpt")
    return model, folder / "w.ckpt"


def ranking(model: Meter) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {"rank_output.weight": torch.randn(1, model.itm_head.in_features), "rank_output.bias": torch.randn(1)}


@pytest.mark.parametrize("without", ["none", "itm_score."])
def test_weights_fine_tuned_for_retrieval_match_by_the_head_that_ranks(without: str, tmp_path: Path) -> None:
    rank = ranking(official_meter(tmp_path / "any.ckpt", 5)[0])
    model, file = official(tmp_path, without, **rank)
    done = import_weights(file, "meter", tmp_path / "in", HINTS)
    features_BF = torch.randn(6, model.itm_head.in_features)
    head = load_model(tmp_path / "in").model.itm_head
    assert isinstance(head, torch.nn.Module)
    scores_B2 = head(features_BF)
    wanted_B = features_BF @ rank["rank_output.weight"][0] + rank["rank_output.bias"]
    torch.testing.assert_close(scores_B2[:, 1], wanted_B)
    assert done.lacking == () and "lacking" not in read_json(tmp_path / "in/config.json")
    assert sum("rank_output takes its place" in name for name in done.dropped) == (2 if without == "none" else 0)
    bad = {**rank, "rank_output.bias": torch.zeros(2)}
    _, file = official(tmp_path, without, **bad)
    with pytest.raises(UserError, match=r"rank_output\.bias 2 where 1 is wanted"):
        import_weights(file, "meter", tmp_path / "bad", HINTS)


def test_weights_without_a_head_that_matches_rank_nothing_and_begin_no_statements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = official(tmp_path, "itm_score.")
    folder, words = tmp_path / "in", _words_of_roberta(tmp_path / "words")
    assert main(["import", str(file), "--kind", "meter", "--out", str(folder), *HEADS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == ["itm_head"]
    assert read_json(folder / "config.json")["lacking"] == ["itm_head"]
    data = split(tmp_path / "data", 4)
    asked = ["evaluate", str(folder), "--task", "retrieval", "--data", str(data), "--tokenizer", str(words)]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "came without the head that matches" in said
    open_export(folder, "retrieval", str(data), words, scored=False)  # its layers can be looked into

    given = ["--pretrained", str(folder), "--tokenizer.path", str(words), "--trim.targets", "[2.0]"]
    given += ["--trim.loop.samples", "16"]
    for more, until, named in (
        ([], "trim", "trim.task=statement;"),
        (["--trim.task", "vqa"], None, r"evaluate.retrieval_splits \(set it to \[\]\);"),
    ):
        with pytest.raises(UserError, match=f"without the head that matches .* asked for by {named}"):
            check_given(read_run([TINY], [*given, *more]), until)
    check_given(read_run([TINY], [*given, "--trim.task", "vqa", "--evaluate.retrieval_splits", "[]"]), None)
