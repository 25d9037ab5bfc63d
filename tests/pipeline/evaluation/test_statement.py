"""Statements of a trimmed model, dealt to ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.models.config import BackboneName
from pipeline.process import Process
from pipeline.tasks.classes import NLVR2, SNLI_VE
from tests.pipeline.data.samples import spoil as damage
from tests.pipeline.distributed import RankError, run_ranks
from tests.pipeline.evaluation.exports import split, statement_export
from tests.pipeline.evaluation.test_retrieval import on_rank, spoil


def test_processes_and_batches_change_no_score(tmp_path: Path) -> None:
    folder, data = statement_export(tmp_path / "export"), split(tmp_path / "test", 11)
    asked = Evaluation(model=folder, task="statement", split=str(data))
    wanted = on_rank(Process(), asked)
    assert (wanted["samples"], len(wanted["gmacs"])) == (22, 22)
    assert np.std(wanted["gmacs"]) > 0
    for world_size in (2, 3):
        given = Evaluation(model=folder, task="statement", split=str(data), batch_size=1)
        for result in run_ranks(on_rank, world_size, given):
            assert result["scores"] == wanted["scores"]
            assert (result["outcomes"], result["digest"]) == (wanted["outcomes"], wanted["digest"])
            assert result["gmacs"] == wanted["gmacs"]


def test_a_batch_of_which_nothing_can_be_used_leaves_the_others_in_their_order(tmp_path: Path) -> None:
    """With a batch of one pair of statements, ranks find different numbers of batches empty."""
    folder, data = statement_export(tmp_path / "export"), split(tmp_path / "test", 8)
    for row in (1, 4):
        damage(data, row)
    asked = Evaluation(model=folder, task="statement", split=str(data))
    wanted = on_rank(Process(), asked)
    assert (wanted["samples"], wanted["skipped"], len(wanted["gmacs"])) == (12, 4, 12)
    for world_size in (2, 3):
        for batch_size in (1, 2):
            for result in run_ranks(on_rank, world_size, replace(asked, batch_size=batch_size)):
                assert result["outcomes"] == wanted["outcomes"] and result["gmacs"] == wanted["gmacs"]


def test_as_many_may_be_bad_with_several_processes_as_with_one(tmp_path: Path) -> None:
    """12 of 46, where 10 always may: six in either half."""
    folder, data = statement_export(tmp_path / "export"), split(tmp_path / "test", 23)
    for row in (1, 2, 3, 15, 16, 17):
        damage(data, row)
    asked = Evaluation(model=folder, task="statement", split=str(data))
    with pytest.raises(UserError, match="of 46 samples could not be used"):
        on_rank(Process(), asked)
    with pytest.raises(RankError, match="12 of 46 samples could not be used; more than max_bad_share"):
        run_ranks(on_rank, 2, asked)


@pytest.mark.parametrize("backbone", ["blip", "meter"])
def test_pairs_too(backbone: BackboneName, tmp_path: Path) -> None:
    folder = statement_export(tmp_path / "export", NLVR2, backbone)
    write_published("nlvr2", tmp_path / "raw", {"dev": 6}, 32, 0)
    prepare(SourceConfig(name="nlvr2", root=str(tmp_path / "raw"), shard_samples=5), tmp_path / "data", workers=1)
    asked = Evaluation(model=folder, task="nlvr2", split=str(tmp_path / "data/dev"))
    wanted = on_rank(Process(), asked)
    assert [score["metric"] for score in wanted["scores"]] == ["accuracy", "consistency"]
    assert (wanted["samples"], len(wanted["gmacs"])) == (24, 24) and np.std(wanted["gmacs"]) > 0
    cut = on_rank(Process(), replace(asked, limit=10))
    assert [score["metric"] for score in cut["scores"]] == ["accuracy"] and cut["samples"] == 10
    assert cut["more"]["lacking"].startswith("no consistency: the limit may leave out others")
    for limit in (24, 100):
        assert on_rank(Process(), replace(asked, limit=limit))["scores"] == wanted["scores"]
    for world_size, batch_size in ((1, 1), (2, 1), (2, 64), (3, 5)):
        given = replace(asked, batch_size=batch_size)
        results = [on_rank(Process(), given)] if world_size == 1 else run_ranks(on_rank, world_size, given)
        for result in results:
            assert result["scores"] == wanted["scores"]
            assert (result["outcomes"], result["digest"]) == (wanted["outcomes"], wanted["digest"])
            assert result["gmacs"] == wanted["gmacs"]
    written = replace(asked, predictions=tmp_path / "said.csv")
    assert "incomplete" not in evaluate_export(written, Process())
    assert evaluate_export(replace(written, limit=10), Process())["incomplete"] == str(tmp_path / "said.csv")
    damage(tmp_path / "data/dev", 3)
    assert evaluate_export(written, Process())["incomplete"] == str(tmp_path / "said.csv")
    torn = on_rank(Process(), asked)
    assert (torn["samples"], torn["skipped"], [score["metric"] for score in torn["scores"]]) == (23, 1, ["accuracy"])
    assert "what could not be used (1 of the split) may leave out others" in torn["more"]["lacking"]


def test_pairs_that_are_in_no_shard_leave_consistency_out_and_the_file_incomplete(tmp_path: Path) -> None:
    folder = statement_export(tmp_path / "export", NLVR2, "blip")
    write_published("nlvr2", tmp_path / "raw", {"dev": 6}, 32, 0)
    (tmp_path / "raw/images/dev/dev-0-1-img0.png").unlink()
    prepare(SourceConfig(name="nlvr2", root=str(tmp_path / "raw")), tmp_path / "data", workers=1)
    asked = Evaluation(model=folder, task="nlvr2", split=str(tmp_path / "data/dev"), predictions=tmp_path / "said.csv")
    found = evaluate_export(asked, Process())
    assert (found["samples"], found["skipped"], found["left_out"]) == (20, 0, 4)
    assert [score["metric"] for score in found["scores"]] == ["accuracy"]
    assert "what is not in the shards (4 by the account in index.json) may leave out others" in found["lacking"]
    assert found["incomplete"] == str(tmp_path / "said.csv")


def test_data_of_another_task_is_not_told_as_damaged(tmp_path: Path) -> None:
    write_published("nlvr2", tmp_path / "raw", {"dev": 6}, 32, 0)
    prepare(SourceConfig(name="nlvr2", root=str(tmp_path / "raw")), tmp_path / "data", workers=1)
    pairs, singles = tmp_path / "data/dev", split(tmp_path / "test", 11)
    one, two = (statement_export(tmp_path / c.task, c, "blip" if c is NLVR2 else "albef") for c in (SNLI_VE, NLVR2))
    for folder, task, data, said in (
        (one, "snli_ve", pairs, r"has 2 picture\(s\) and 1 statement"),
        (one, "snli_ve", singles, r"has 1 picture\(s\) and 2 statement"),
        (two, "nlvr2", singles, "statements about pairs of pictures"),
    ):
        with pytest.raises(UserError, match=f"{data} is not data of {task}, which wants .*{said}"):
            evaluate_export(Evaluation(model=folder, task=task, split=str(data)), Process())


def test_nan_is_an_error(tmp_path: Path) -> None:
    folder, data = statement_export(tmp_path / "export"), split(tmp_path / "test", 2)
    spoil(folder, "cls_head.bias")
    with pytest.raises(UserError, match="4 of 4 scores of statements are not finite"):
        on_rank(Process(), Evaluation(model=folder, task="statement", split=str(data)))
