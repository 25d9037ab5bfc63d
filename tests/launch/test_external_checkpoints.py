"""Checkpoints at `checkpoint.path`: where they go, who is told, and what `--fresh` removes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.graph import read_status
from launch.status import read_state
from launch.status_text import state_text
from pipeline.checkpoint_places import newest_step
from pipeline.lease import LEASE
from tests.launch.faulty.faults import wait_until
from tests.launch.test_run import ROOT, TINY, process, run

ONE = ("--pretrain.loop.samples", "16", "--pretrain.loop.checkpoint_seconds", "1000")  # a checkpoint, at the end
FEW = (*ONE, "--trim.targets", "[]", "--evaluate.statement_splits", "[]")


def test_status_tells_of_them_and_fresh_removes_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = ("--checkpoint.path", "kept", *FEW)
    assert run(tmp_path / "run", *elsewhere, command="pretrain") == 0
    (saved,) = (tmp_path / "kept/pretrain").glob("step_*")
    assert not (tmp_path / "run/stages/pretrain/checkpoints").exists()
    found = read_state(tmp_path / "run")["stages"]["pretrain"]["checkpoint"]
    assert (found["step"], found["where"]) == (2, str(saved)) and found["age_seconds"] < 60
    foreign = tmp_path / "kept/others/step_00000009"
    foreign.mkdir(parents=True)
    given = [(tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "run.json")]
    assert run(tmp_path / "run", *elsewhere, "--seed", "1", command="pretrain") == 2
    assert "another configuration" in capsys.readouterr().err
    assert given == [(tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "run.json")]
    assert run(tmp_path / "run", *elsewhere, "--seed", "1", "--fresh", command="pretrain") == 0
    assert foreign.is_dir() and saved.is_dir()
    shutil.rmtree(saved)
    assert read_state(tmp_path / "run")["stages"]["pretrain"]["checkpoint"] is None


def test_status_tells_of_those_in_a_store_that_it_does_not_see(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(out, "--checkpoint.path", "memory://external/mine", *FEW, command="pretrain") == 0
    command = [sys.executable, "-m", "launch", "status", str(out), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)["stages"]["pretrain"]["checkpoint"]
    assert (found["step"], found["where"]) == (2, "memory://external/mine/pretrain/step_00000002")
    state = read_state(out)
    state["stages"]["pretrain"] |= {"state": "interrupted"}
    assert "last checkpoint: step 2, 0 s ago, in memory://external/mine/pretrain" in state_text(state).replace(
        f"{state['stages']['pretrain']['checkpoint']['age_seconds']:.0f} s ago", "0 s ago"
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_relative_path_is_the_same_folder_for_all_workers(tmp_path: Path) -> None:
    words = ["--launcher", "ray", "--cluster.workers", "2", "--cluster.cpus_per_worker", "0.5"]
    words += ["--engine.name", "deepspeed", "--checkpoint.path", "kept", *FEW]
    command = [sys.executable, "-m", "launch", "pretrain", TINY, "--out", "run", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert read_status(tmp_path / "run/stages/pretrain")["state"] == "done"
    assert sorted(path.name for path in (tmp_path / "kept/pretrain").iterdir()) == ["step_00000002"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_live_run_is_refused_and_the_place_of_a_killed_one_is_free_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    endless = ("--checkpoint.path", str(kept), "--pretrain.loop.samples", "10000000", "--trim.targets", "[]")
    endless += ("--evaluate.statement_splits", "[]", "--pretrain.loop.checkpoint_seconds", "1")
    first = process(tmp_path / "first", *endless, command="pretrain")
    try:
        wait_until(lambda: first.poll() is not None or newest_step(kept / "pretrain") > 0, 120, "a checkpoint")
        for more in ((), ("--fresh",)):
            assert run(tmp_path / "second", *endless, *more, command="pretrain") == 2
            told = capsys.readouterr().err
            assert f"{kept} is in use by the run {tmp_path / 'first'} (process {first.pid} on " in told
            assert len([line for line in told.splitlines() if line.startswith("trimline:")]) == 1
        assert first.poll() is None and newest_step(kept / "pretrain") > 0
    finally:
        first.kill()
        first.wait()
    reached = newest_step(kept / "pretrain")
    third = process(tmp_path / "third", *endless, command="pretrain")
    try:
        log = tmp_path / "third/stages/pretrain/log.txt"
        wait_until(lambda: log.exists() and "going on from" in log.read_text(), 25, "a start")
        wait_until(lambda: newest_step(kept / "pretrain") > reached, 60, "a checkpoint")
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 130
    finally:
        third.kill()
    assert not (kept / LEASE).exists()
