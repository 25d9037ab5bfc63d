"""What becomes of a stopped stage's checkpoints where its configuration changes, or its status is lost."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep import files
from data_prep.errors import UserError
from data_prep.files import write_json
from launch.config import RunConfig
from launch.graph import Attempt, Stage, fingerprints, read_status
from launch.local_backend import LocalBackend
from launch.reading import read_config
from launch.stages import build_stages
from launch.takeover import take_over
from pipeline.checkpoint import CheckpointStore
from pipeline.checkpoint_places import newest_step
from tests.launch.test_graph import go, stage, write
from tests.launch.test_run import TINY, run
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


def stops_early(attempt: Attempt) -> Mapping[str, Any]:
    """What a stage does that is stopped before its first checkpoint."""
    (attempt.folder / "bad_updates").write_text("of this one")
    raise UserError("stopped")


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


@pytest.mark.parametrize(
    ("first", "second"),
    [("train/checkpoints", "kept"), ("kept", "train/checkpoints"), ("kept", "other"), ("train", "train/checkpoints")],
)
def test_with_another_place_a_stopped_stage_neither_begins_anew_nor_loses_its_checkpoints(
    tmp_path: Path, first: str, second: str
) -> None:
    here, there = tmp_path / first, tmp_path / second
    go(saving(tmp_path, 0.1, end=False, checkpoints=here))
    with pytest.raises(UserError, match=rf"of another configuration, step_00000001 in {here} \(optimizer\.lr was 0\.1"):
        go(saving(tmp_path, 0.2, checkpoints=there))
    with pytest.raises(UserError, match=rf"its checkpoints in {here} .*none in {there}: move them.*checkpoint\.path"):
        go(saving(tmp_path, 0.1, checkpoints=there))
    assert newest_step(here) == 1 and (tmp_path / "train" / "metrics").read_text() == "0.1"
    there.mkdir(exist_ok=True)
    (here / "step_00000001").rename(there / "step_00000001")
    result, recorder = go(saving(tmp_path, 0.1, checkpoints=there))
    assert result.complete and recorder.resumed == ["train"]


def test_a_stopped_stages_checkpoints_stay_where_another_place_has_some_to_go_on_from(tmp_path: Path) -> None:
    for folder, lr in (("elsewhere", 0.2), ("run", 0.1)):
        own = tmp_path / "kept" if folder == "elsewhere" else None
        go(saving(tmp_path / folder, lr, end=False, checkpoints=own))
    with pytest.raises(UserError, match=r"optimizer\.lr was 0\.1, is 0\.2"):
        go(saving(tmp_path / "run", 0.2, checkpoints=tmp_path / "kept"))
    assert newest_step(tmp_path / "run/train/checkpoints") == 1


def test_a_place_of_old_that_cannot_be_read_matters_only_where_nothing_is_at_the_new_one(tmp_path: Path) -> None:
    there, status = tmp_path / "there", tmp_path / "train/status.json"
    go(saving(tmp_path, 0.1, end=False, checkpoints=there))
    write_json(status, {**read_status(tmp_path / "train"), "checkpoints": "nosuch://bucket/folder"})
    result, recorder = go(saving(tmp_path, 0.1, checkpoints=there))
    assert result.complete and recorder.resumed == ["train"]
    go(saving(tmp_path, 0.2, end=False, checkpoints=tmp_path / "second"))
    write_json(status, {**read_status(tmp_path / "train"), "checkpoints": "nosuch://bucket/folder"})
    with pytest.raises(UserError, match=r"may have checkpoints in nosuch://bucket/folder, .* remove .*status\.json$"):
        go(saving(tmp_path, 0.2, checkpoints=tmp_path / "third"))
    status.unlink()
    assert go(saving(tmp_path, 0.2, checkpoints=tmp_path / "third"))[0].complete


def test_a_moved_run_does_not_look_where_it_was(tmp_path: Path) -> None:
    go(replace(saving(tmp_path / "old", 0.1), run=stops_early))
    (tmp_path / "old").rename(tmp_path / "new")
    go(saving(tmp_path / "old", 0.2, end=False))
    result, recorder = go(saving(tmp_path / "new", 0.1))
    assert result.complete and recorder.resumed == ["train"]


@pytest.mark.parametrize("lost", [True, False])
def test_damaged_checkpoints_of_a_stopped_stage_stay(tmp_path: Path, lost: bool) -> None:
    go(saving(tmp_path, 0.1, end=False))
    manifest = tmp_path / "train/checkpoints/step_00000001/manifest.json"
    manifest.write_text("{}")
    if lost:
        (tmp_path / "train/status.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint that is whole: step_00000001 are damaged.*--fresh"):
        go(saving(tmp_path, 0.1 if lost else 0.2))
    assert manifest.exists() and (tmp_path / "train" / "metrics").exists()


def test_a_place_that_holds_another_configuration_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    first, second, kept = tmp_path / "first", tmp_path / "second", tmp_path / "kept"
    go(saving(first, 0.1, end=False, checkpoints=kept))
    with pytest.raises(UserError, match="another configuration, step_00000001"):
        go(stage(second, "before"), saving(second, 0.2, checkpoints=kept))
    assert not second.exists()
    result, recorder = go(stage(second, "before"), saving(second, 0.1, checkpoints=kept))
    assert result.complete and recorder.resumed == ["train"]


def test_a_stage_that_goes_on_from_elsewhere_has_nothing_of_another_one_in_its_folder(tmp_path: Path) -> None:
    go(saving(tmp_path, 0.1, checkpoints=tmp_path / "kept"))
    go(replace(saving(tmp_path, 0.2, checkpoints=tmp_path / "other"), run=stops_early))
    result, recorder = go(saving(tmp_path, 0.1, checkpoints=tmp_path / "kept"))
    assert result.complete and recorder.resumed == ["train"]
    assert not (tmp_path / "train" / "bad_updates").exists()
    assert read_status(tmp_path / "train")["restarts"] == 1


def test_a_removal_that_is_stopped_leaves_nothing_that_the_next_start_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(folder: Path) -> None:
        next(folder.rglob("status.json")).unlink()
        raise RuntimeError("stopped")

    go(saving(tmp_path, 0.1))
    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", stopped)
        result, _ = go(saving(tmp_path, 0.2))
    assert "stopped" in result.failures["train"].message
    result, recorder = go(saving(tmp_path, 0.2))
    assert result.complete and not recorder.resumed
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert (tmp_path / "train" / "metrics").read_text() == "0.2"


def test_a_refused_run_keeps_its_configuration_and_takes_nothing_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    config = read_config(RunConfig, [Path(TINY)], [])
    made = build_stages(config, other, LocalBackend(0, 1), "pretrain")
    for each, digest in zip(made, fingerprints(made).values(), strict=True):
        for path in each.outputs:
            (path if path.suffix else path / "any").parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        each.folder.mkdir(parents=True, exist_ok=True)
        write_json(each.folder / "status.json", {"state": "done", "fingerprint": digest})
    fresh = build_stages(config, tmp_path / "fresh", LocalBackend(0, 1), "pretrain")
    assert take_over(fresh, tmp_path / "fresh", other) == ["shard", "pretrain"]
    store = CheckpointStore(out / "stages/pretrain/checkpoints", fingerprint="of another")
    store.save(1, new_engine(), {}, {})
    for name in ("run.json", "config.yaml"):
        (out / name).write_text("{}")
    assert run(out, "--take_from", str(other), command="pretrain") == 2
    assert "stage pretrain has a checkpoint of another configuration" in capsys.readouterr().err
    assert store.latest() is not None and not (out / "stages/shard").exists()
    assert [(out / name).read_text() for name in ("run.json", "config.yaml")] == ["{}", "{}"]
