"""Wandb in its modes: the same numbers as metrics.jsonl, one run over restarts, and never the end of a training."""

import io
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from pipeline import tracking
from pipeline.process import Process
from pipeline.tracking import TRACKING, Tracker, TrackingConfig, open_tracker
from tests.pipeline.wandb_files import config_of, history, run_of, summary_of

KEY = "0123456789abcdef0123456789abcdef01234567"
RUN: dict[str, Any] = {"name": "demo", "seed": 3, "pretrain": {"loop": {"samples": 48}}}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees somebody's key, or leaves one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())


def track(folder: Path, lines: list[dict[str, Any]], process: Process | None = None, **config: Any) -> Tracker:
    with open_tracker(TrackingConfig(**config), "demo-1f", RUN, folder, process or Process()) as tracker:
        for line in lines:
            tracker.log(line)
    return tracker


def files(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def told(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / TRACKING).read_text())
    return state


def test_offline_files_hold_config_group_and_the_numbers_and_a_restart_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "pretrain"
    lines = [{"step": step, "samples": 8 * step, "loss": 1 / step, "skips": {"cut off": 2}} for step in (1, 2, 3)]
    assert track(folder, lines[:2], tags=("a", "b"), project="mine", entity="us").restarts == 0
    assert track(folder, lines[1:], tags=("a", "b"), project="mine", entity="us").restarts == 1
    first, second = files(folder)
    assert history(first) == lines[:2]
    assert history(second) == lines[1:]
    for path in (first, second):
        run = run_of(path)
        assert run.run_id == told(folder)["id"]
        assert (run.run_group, run.display_name, run.job_type) == ("demo-1f", "demo/pretrain", "pretrain")
        assert (run.project, run.entity, list(run.tags)) == ("mine", "us", ["a", "b"])
        assert config_of(path).items() >= RUN.items()
    state = told(folder)
    assert (state["starts"], state["wandb"], state["problem"]) == (2, "offline", None)


def test_results_of_a_stage_are_its_summary(tmp_path: Path) -> None:
    folder = tmp_path / "evaluate-pretrain"
    with open_tracker(TrackingConfig(group="all"), "demo-1f", RUN, folder, Process()) as tracker:
        tracker.summary({"statement/test/accuracy": 61.5})
    (path,) = files(folder)
    assert summary_of(path)["statement/test/accuracy"] == 61.5
    assert run_of(path).run_group == "all"


def test_disabled_writes_nothing_of_wandbs_and_other_ranks_write_nothing_at_all(tmp_path: Path) -> None:
    track(tmp_path / "a", [{"step": 1}], wandb="disabled")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [TRACKING]
    track(tmp_path / "b", [{"step": 1}], Process(rank=1, world_size=2))
    assert not (tmp_path / "b").exists()


def test_online_without_a_key_is_told_and_kept_in_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    track(tmp_path / "p", [{"step": 1, "loss": 0.5}], wandb="online")
    state = told(tmp_path / "p")
    assert "WANDB_API_KEY" in state["problem"]
    assert "wandb sync" in state["problem"]
    assert state["wandb"] == "offline"
    assert [record.levelname for record in caplog.records if "no key" in record.message] == ["WARNING"]
    assert history(files(tmp_path / "p")[-1]) == [{"step": 1, "loss": 0.5}]


def test_a_server_that_does_not_answer_delays_nothing_and_the_key_stays_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:  # accepts connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr(tracking, "_SERVER_SECONDS", 3.0)
        config = TrackingConfig(wandb="online")
        with open_tracker(config, "demo-1f", RUN, tmp_path / "p", Process()) as tracker:
            began = time.monotonic()
            for step in range(1, 101):
                tracker.log({"step": step, "loss": 0.5})
            assert time.monotonic() - began < 1.0
    state = told(tmp_path / "p")
    assert "wandb is not online" in state["problem"]
    assert "wandb sync" in state["problem"]
    assert len(history(files(tmp_path / "p")[-1])) == 100
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_failing_training_ends_wandb_and_keeps_its_own_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        open_tracker(TrackingConfig(), "g", RUN, tmp_path / "p", Process()) as tracker,
    ):
        tracker.log({"step": 1})
        raise ZeroDivisionError
    assert history(files(tmp_path / "p")[0]) == [{"step": 1}]


def test_wandb_that_breaks_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with open_tracker(TrackingConfig(), "g", {"bad": {1, 2}, KEY: 1}, tmp_path / "p", Process()) as tracker:
        (tmp_path / "p" / "wandb").write_text("not a folder")
        for step in range(200):
            tracker.log({"step": step})
    assert "metrics.jsonl has all numbers" in told(tmp_path / "p")["problem"]
    assert KEY not in (tmp_path / "p" / TRACKING).read_text()


def test_a_broken_state_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / TRACKING).write_text('{"starts": 4, "id')
    assert track(tmp_path, [], wandb="disabled").restarts == 0


@pytest.mark.parametrize(("key", "value"), [("project", "a/b"), ("project", " "), ("peak_tflops", 0.0)])
def test_bad_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"tracking.{key}"):
        TrackingConfig(**{key: value})
