"""What becomes of a stopped stage's checkpoints where its configuration changes, or its status is lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from launch.graph import Attempt, Stage
from pipeline.checkpoint import CheckpointStore
from tests.launch.test_graph import go, stage, write
from tests.pipeline.test_checkpoint import new_engine


def saving(root: Path, lr: float, end: bool = True, checkpoints: Path | str | None = None) -> Stage:
    """A training stage that saves a checkpoint, as the store of checkpoints does, and may be stopped after it."""
    folder = root / "train"

    def train(attempt: Attempt) -> Mapping[str, Any]:
        store = CheckpointStore(made.checkpoints, fingerprint=attempt.fingerprint)
        if store.latest() is None:
            (attempt.folder / "metrics").write_text(f"{lr}")
            store.save(1, new_engine(), {}, {})
            store.finish()
        if not end:
            raise UserError("stopped")
        return write(attempt)

    made = Stage(
        name="train", folder=folder, run=train, parts={"optimizer": {"lr": lr}}, outputs=(folder / "result",),
        checkpoints=checkpoints or folder / "checkpoints",
    )  # fmt: skip
    return made


def test_a_stopped_stages_checkpoints_are_not_lost_to_another_configuration(tmp_path: Path) -> None:
    def before() -> Stage:
        return stage(tmp_path, "before")

    go(before(), saving(tmp_path, 0.1, end=False))
    (tmp_path / "before" / "result").unlink()
    words = r"stage train .*step_00000001 in .*optimizer\.lr was 0\.1, is 0\.2.*remove .*--out.*--fresh"
    with pytest.raises(UserError, match=words):
        go(before(), saving(tmp_path, 0.2))
    assert not (tmp_path / "before" / "result").exists(), "nothing may run that is for nothing"
    assert (tmp_path / "train" / "metrics").read_text() == "0.1"
    result, recorder = go(before(), saving(tmp_path, 0.1))
    assert result.complete and sorted(recorder.resumed) == ["before", "train"]
    result, recorder = go(before(), saving(tmp_path, 0.2))  # the first is finished: another one is what is wanted
    assert result.complete and (tmp_path / "train" / "metrics").read_text() == "0.2"


@pytest.mark.parametrize("status", [None, "{"])
def test_a_stage_whose_status_cannot_be_read_goes_on_from_its_checkpoints(tmp_path: Path, status: str | None) -> None:
    go(saving(tmp_path, 0.1, end=False))
    path = tmp_path / "train" / "status.json"
    path.unlink() if status is None else path.write_text(status)
    with pytest.raises(UserError, match="another configuration"):
        go(saving(tmp_path, 0.2))
    result, recorder = go(saving(tmp_path, 0.1))
    assert result.complete and recorder.resumed == ["train"]


def test_a_finished_stage_is_not_removed_for_one_that_its_place_of_checkpoints_refuses(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    go(saving(tmp_path, 0.1, checkpoints=kept))
    with pytest.raises(UserError, match="another configuration"):
        go(saving(tmp_path, 0.2, checkpoints=kept))
    assert (tmp_path / "train" / "result").exists()
