"""What `trimline status` says of a run folder, whatever state it is in."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import write_json
from data_prep.lock import FolderLock
from launch.cli import main
from launch.graph import Attempt, Stage, run_graph
from launch.progress import ProgressDisplay
from launch.status import read_state
from launch.status_text import state_text, watch
from pipeline.progress import MetricsLog, ProgressFile

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "launch" / "tiny.yaml")


def stage(out: Path, name: str, run: Callable[[Attempt], Mapping[str, Any]], *inputs: str) -> Stage:
    return Stage(name=name, folder=out / "stages" / name, run=run, inputs=inputs)


def begin_run(out: Path, stages: list[Stage], **facts: Any) -> None:
    out.mkdir()
    planned = {one.name: list(one.inputs) for one in stages}
    write_json(out / "run.json", {"name": "mine", "started": "t", "finished": None, "stages": planned, **facts})


def walk(stages: list[Stage]) -> None:
    run_graph(stages, 0, ProgressDisplay(io.StringIO()))


def nothing(attempt: Attempt) -> dict[str, Any]:
    return {}


def fail(attempt: Attempt) -> dict[str, Any]:
    (attempt.folder / "log.txt").write_text("why\n")
    raise UserError("bread=0 is too little; try 1")


def test_a_failed_stage_is_named_with_its_reason_and_its_log_and_blocks_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages = [
        stage(out, "shard", nothing),
        stage(out, "pretrain", fail, "shard"),
        stage(out, "trim", nothing, "shard", "pretrain"),
    ]
    begin_run(out, stages)
    walk(stages)
    state = read_state(out)
    assert state["state"] == "failed"
    assert {name: one["state"] for name, one in state["stages"].items()} == {
        "shard": "done", "pretrain": "failed", "trim": "blocked",
    }  # fmt: skip
    assert state["stages"]["trim"]["waits_for"] == ["pretrain"]
    text = state_text(state)
    assert "failed: bread=0 is too little; try 1" in text
    assert str(out / "stages" / "pretrain" / "log.txt") in text
    assert "blocked (needs pretrain)" in text


def test_a_training_shows_progress_losses_speed_checkpoint_and_what_waits_for_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    seen: list[dict[str, Any]] = []

    def training(attempt: Attempt) -> dict[str, Any]:
        progress = ProgressFile(attempt.folder / "progress.json", 1.0, "share")
        progress.show(0.25, now=True)
        time.sleep(0.05)
        progress.show(0.5, "loss 1.5", now=True)
        metrics = MetricsLog(attempt.folder / "metrics.jsonl", 0)
        metrics.write({"step": 10, "loss": 2.0})
        line = {"loss": 1.5, "loss/itc": 1.25, "samples_per_second": 80.0, "data_wait": 0.03, "tflops_per_device": 0.5}
        metrics.write({"step": 20, "loss/itm": float("nan"), **line})
        with open(metrics.path, "a") as file:
            file.write('{"step": 30, "lo')  # cut short
        for step in (10, 20, 30):
            folder = attempt.folder / "checkpoints" / f"step_{step:08d}"
            folder.mkdir(parents=True)
            if step < 30:
                (folder / "COMPLETE").touch()
        write_json(
            attempt.folder / "tracking.json", {"starts": 2, "wandb": "offline", "problem": "wandb is not online"}
        )
        seen.append(read_state(out))
        return {}

    stages = [stage(out, "pretrain", training), stage(out, "trim", nothing, "pretrain")]
    begin_run(out, stages)
    with FolderLock(out):
        walk(stages)
    (state,) = seen
    one = state["stages"]["pretrain"]
    assert (state["state"], state["process"]) == ("running", os.getpid())
    assert state["last_sign_seconds"] < 5
    assert one["state"] == "running"
    assert (one["step"], one["losses"]) == (20, {"loss": 1.5, "loss/itm": None, "loss/itc": 1.25})
    assert one["speed"] == {"samples_per_second": 80.0, "data_wait": 0.03, "tflops_per_device": 0.5}
    assert 0.05 <= one["progress"]["eta_seconds"] <= 0.5
    assert one["checkpoint"]["step"] == 20
    assert state["stages"]["trim"]["waits_for"] == ["pretrain"]
    text = state_text(state)
    for words in (
        "running: 50%, loss 1.5, 0 s left",
        "step 20: loss 1.5, loss/itc 1.25, NaN or infinite: 1, 80 samples/s, 0.5 TFLOP/s a device, 3% waiting for data",
        "last checkpoint: step 20, 0 s ago",
        "waiting (waits for pretrain)",
        "wandb is not online",
    ):
        assert words in text


def test_a_killed_run_says_when_it_last_lived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "launch", "run", TINY, "--out", str(out), "--pretrain.loop.samples", "1000000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while (
            not (out / "stages/pretrain/metrics.jsonl").exists()
            or read_state(out)["stages"]["pretrain"]["step"] is None
        ):
            assert time.monotonic() < end
            assert running.poll() is None
            time.sleep(0.1)
        watcher = subprocess.Popen(
            [sys.executable, "-m", "launch", "status", str(out), "--watch", "--json"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watcher.stdout is not None
        first = json.loads(watcher.stdout.readline())
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert (first["state"], first["process"]) == ("running", running.pid)
    assert first["stages"]["pretrain"]["state"] == "running"
    assert first["stages"]["trim-statement-1.0x"]["state"] == "waiting"
    rest, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    last = json.loads(rest.splitlines()[-1])
    assert last["state"] == "stopped"
    assert last["stages"]["pretrain"]["state"] == "interrupted"
    assert last["stages"]["trim-statement-1.0x"]["state"] == "not begun"
    assert main(["status", str(out)]) == 0
    text = capsys.readouterr().out
    assert "tiny: stopped or killed: no process of this machine works there; last sign of life " in text
    assert "the same `trimline` command again goes on" in text
    assert f"log: {out / 'launch.log'}" in text or not (out / "launch.log").exists()


def test_a_watched_run_is_shown_when_it_changes_and_until_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = io.StringIO()

    def training(attempt: Attempt) -> dict[str, Any]:
        import threading

        def look() -> None:
            watch(out, False, shown, 0.02)

        follower = threading.Thread(target=look)
        follower.start()
        time.sleep(0.2)
        followers.append(follower)
        return {}

    followers: list[Any] = []
    stages = [stage(out, "pretrain", training)]
    begin_run(out, stages)
    with FolderLock(out):
        walk(stages)
    followers[0].join(10)
    assert not followers[0].is_alive()
    assert shown.getvalue().startswith(f"mine: running, process {os.getpid()}")
    assert "\x1b" not in shown.getvalue()


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"na'])
def test_a_foreign_folder_is_one_line(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert main(["status", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trimline: ")
    assert error.count("\n") == 1


def test_a_folder_of_an_earlier_version_has_no_plan_and_is_still_read(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages = [stage(out, "pretrain", nothing)]
    begin_run(out, stages, finished="2026-01-01T00:00:00")
    facts = json.loads((out / "run.json").read_text())
    del facts["stages"]
    write_json(out / "run.json", facts)
    walk(stages)
    state = read_state(out)
    assert (state["state"], state["stages"]["pretrain"]["state"]) == ("finished", "done")
    assert state_text(state).startswith("mine: finished 2026-01-01T00:00:00")
