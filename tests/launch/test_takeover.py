"""Stages that another run has finished: which are taken over, and that what is taken counts as finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import write_json
from launch.graph import Attempt, GraphResult, Stage, run_graph
from launch.takeover import take_over


class Quiet:
    """An observer that is told and says nothing."""

    def stage_started(self, stage: Stage, attempt: Attempt) -> None:
        pass

    def stage_ended(self, stage: Stage, outcome: str, seconds: float, message: str) -> None:
        pass


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def stages_of(out: Path, parts: Mapping[str, Any]) -> list[Stage]:
    """Shards beside the stages' folders, a training on them, and one more that depends on its own part alone."""

    def shard(attempt: Attempt) -> dict[str, Any]:
        for name in ("train/a.tar", "train/index.json", "test/index.json"):
            write(out / "data" / name, parts["shard"])
        return {}

    def train(attempt: Attempt) -> dict[str, Any]:
        write(attempt.folder / "export/config.json", parts)
        write(attempt.folder / "checkpoints/step.json", {})
        return {"steps": 3}

    def folder(name: str) -> Path:
        return out / "stages" / name

    splits = (out / "data/train/index.json", out / "data/test/index.json")
    return [
        Stage(name="shard", folder=folder("shard"), run=shard, parts={"s": parts["shard"]}, outputs=splits),
        Stage(name="train", folder=folder("train"), run=train, inputs=("shard",), parts={"t": parts["train"]},
              outputs=(folder("train") / "export",)),
    ]  # fmt: skip


def run(stages: list[Stage]) -> GraphResult:
    return run_graph(stages, 0, Quiet())


SAME = {"shard": 1, "train": 1}


def test_what_would_be_made_just_so_is_taken_and_counts_as_finished(tmp_path: Path) -> None:
    run(stages_of(tmp_path / "a", SAME))
    mine = stages_of(tmp_path / "b", SAME)
    assert take_over(mine, tmp_path / "b", tmp_path / "a") == ["shard", "train"]
    assert set(run(mine).outcomes.values()) == {"skipped"}
    assert (tmp_path / "b/data/train/a.tar").stat().st_ino == (tmp_path / "a/data/train/a.tar").stat().st_ino
    assert not (tmp_path / "b/stages/train/checkpoints").exists()
    assert not list(tmp_path.rglob("*.taken"))
    assert take_over(mine, tmp_path / "b", tmp_path / "a") == []  # it is all there


def test_what_depends_on_something_else_is_made_anew(tmp_path: Path) -> None:
    run(stages_of(tmp_path / "a", SAME))
    mine = stages_of(tmp_path / "b", {**SAME, "train": 2})
    assert take_over(mine, tmp_path / "b", tmp_path / "a") == ["shard"]
    assert run(mine).outcomes == {"shard": "skipped", "train": "done"}
    other = stages_of(tmp_path / "c", {**SAME, "shard": 2})
    assert take_over(other, tmp_path / "c", tmp_path / "a") == []
    # The first run is as it was.
    assert set(run(stages_of(tmp_path / "a", SAME)).outcomes.values()) == {"skipped"}


def test_what_is_not_finished_there_is_not_taken(tmp_path: Path) -> None:
    stages = stages_of(tmp_path / "a", SAME)
    run(stages[:1])
    write(tmp_path / "a/stages/train/status.json", {"state": "running"})
    assert take_over(stages_of(tmp_path / "b", SAME), tmp_path / "b", tmp_path / "a") == ["shard"]
    (tmp_path / "a/data/test/index.json").unlink()
    assert take_over(stages_of(tmp_path / "c", SAME), tmp_path / "c", tmp_path / "a") == []
    with pytest.raises(UserError, match="holds no run"):
        take_over(stages, tmp_path / "a", tmp_path / "nothing")
