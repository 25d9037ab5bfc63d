"""What can be known before anything starts is said then."""

from pathlib import Path

import pytest

import launch
from data_prep.errors import UserError
from launch.config import RunConfig
from launch.preflight import check
from launch.reading import read_config

DEMO = Path(launch.__file__).resolve().parent.parent / "configs" / "runs" / "demo.yaml"


def checked(out: Path, *words: str) -> None:
    check(read_config(RunConfig, [DEMO], ["--cluster.workers", "1", *words]), out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loader.height", "32"], "the loader gives 32 x 64"),
        (["--loader.max_tokens", "400"], "model.text.max_positions="),
        (["--pretrain.elip.depths", "[2, 2, 6, 3]"], "add up to 13"),
        (["--pretrain.elip.ratios", "[0.9, 0.65, 0.001]"], "keeps 0 of"),
        (["--engine.zero_stage", "3"], "use 0, 1 or 2"),
        (["--pretrain.loop.global_batch", "4", "--engine.accumulation", "4"], "try --pretrain.loop.global_batch 8"),
        (["--trim.loop.global_batch", "30"], "trim.loop.global_batch=30"),
        (["--evaluate.statement_splits", "[]"], "evaluate.statement_splits is empty"),
        (["--evaluate.statement_splits", "[exam]"], "evaluate.statement_splits names the split 'exam'"),
        (["--evaluate.retrieval_splits", "[exam]"], "evaluate.retrieval_splits names the split 'exam'"),
        (["--evaluate.picture_split", "exam"], "evaluate.picture_split names the split 'exam'"),
        (["--trim.targets", "[]", "--evaluate.retrieval_splits", "[]"], "set evaluate.pictures to 0"),
    ],
)
def test_what_stages_would_find_out_late_is_found_at_once(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        checked(tmp_path, *words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [[], ["--evaluate.picture_split", "exam", "--evaluate.pictures", "0"]])
def test_a_run_that_can_work_passes(words: list[str], tmp_path: Path) -> None:
    checked(tmp_path, *words)
