"""Whole runs, each of seconds: shards, pre-training, trimming, evaluation, report, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.cli import main
from launch.config import RunConfig
from launch.graph import Attempt, read_status
from launch.reading import read_config
from launch.recipes import find_recipe
from launch.run import remove_run
from launch.stages import build_stages
from launch.tasks import tasks_of
from pipeline.checkpoint_places import newest_step
from pipeline.measure.outcomes import outcomes_file, read_outcomes

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "launch" / "tiny.yaml")
STAGES = (
    "shard",
    "pretrain",
    "trim-statement-1.0x",
    "trim-statement-2.0x",
    "evaluate-pretrain",
    "evaluate-trim-statement-1.0x",
    "evaluate-trim-statement-2.0x",
    "survivors",
)


def run(out: Path, *words: str, command: str = "run") -> int:
    return main([command, TINY, "--out", str(out), *words])


def started(out: Path) -> dict[str, Any]:
    return {name: read_status(out / "stages" / name).get("started") for name in STAGES}


def process(out: Path, *words: str, command: str = "run") -> subprocess.Popen[str]:
    whole = [sys.executable, "-m", "launch", command, TINY, "--out", str(out), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(whole, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def losses(out: Path, stage: str) -> list[dict[str, Any]]:
    """The metrics of a stage without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
    clocks = ("second", "time", "wait", "_ms", "tflops", "memory", "restarts")
    return [{key: value for key, value in line.items() if not any(part in key for part in clocks)} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run that the tests look at."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(out) == 0
    return out


def test_a_run_leaves_results_report_metrics_and_its_own_description(finished: Path) -> None:
    rows = read_json(finished / "results.json")
    assert {row["task"] for row in rows} >= {"retrieval", "statement"}
    assert {"stage", "method", "target", "task", "split", "metric", "value", "low", "high", "gmacs", "seed"} <= set(
        rows[0]
    )
    assert (finished / "report.html").stat().st_size > 10_000
    stages = {json.loads(line)["stage"] for line in (finished / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"pretrain", "trim-statement-1.0x", "trim-statement-2.0x"}
    facts = read_json(finished / "run.json")
    assert {"name", "command", "started", "finished", "seconds", "versions", "commit", "hardware", "seed"} <= set(facts)
    assert facts["finished"]
    config = read_config(RunConfig, [find_recipe(str(finished / "config.yaml"))], [])
    assert config == read_config(RunConfig, [Path(TINY)], ["--out", str(finished)])
    assert all((finished / "stages" / name / "export").is_dir() for name in STAGES[1:4])


def test_what_became_of_each_test_instance_is_kept_and_compared(finished: Path) -> None:
    rows = {(row["stage"], row["metric"]): row["value"] for row in read_json(finished / "results.json")}
    page = (finished / "report.html").read_text()
    for model, metric, count in (("pretrain", "R@10", 16), ("trim-statement-2.0x", "accuracy", 64)):
        path = outcomes_file(finished / "stages" / f"evaluate-{model}", model, "test")
        series = read_outcomes(path, metric)
        means = [100 * sum(each.values) / len(each.values) for each in series]
        assert sum(means) / len(means) == pytest.approx(rows[model, metric])
        assert {len(each.names) for each in series} == {count}
    assert "<td>statement 2x test accuracy</td><td>own 1.0x</td>" in page


def test_a_second_call_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, facts = started(finished), read_json(finished / "run.json")
    assert run(finished, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["stages"].values()) == {"skipped"}
    assert started(finished) == before
    after = read_json(finished / "run.json")
    assert (after["finished"], after["seconds"]) == (facts["finished"], facts["seconds"])


def test_status_tells_the_stages_from_another_place(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(finished), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["process"] is None
    assert {name: stage["state"] for name, stage in state["stages"].items()} == dict.fromkeys(STAGES, "done")
    assert main(["status", str(finished)]) == 0
    assert "pretrain" in capsys.readouterr().out


def test_a_moved_run_folder_is_still_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = finished.with_name("moved")
    finished.rename(moved)
    try:
        assert run(moved, "--json") == 0
        assert set(json.loads(capsys.readouterr().out)["stages"].values()) == {"skipped"}
    finally:
        moved.rename(finished)


def test_stages_can_be_run_one_by_one_and_only_what_changed_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    one = ("--trim.targets", "[1.0]", "--json")

    def outcomes(command: str, *words: str) -> dict[str, str]:
        assert run(out, *one, *words, command=command) == 0
        stages: dict[str, str] = json.loads(capsys.readouterr().out)["stages"]
        return stages

    assert outcomes("pretrain") == {"shard": "done", "pretrain": "done"}
    trimmed, scored = "trim-statement-1.0x", "evaluate-trim-statement-1.0x"
    assert outcomes("trim") == {"shard": "skipped", "pretrain": "skipped", trimmed: "done", scored: "done"}
    changed = outcomes("run", "--trim.loop.samples", "40")
    assert changed["pretrain"] == "skipped"
    assert changed["trim-statement-1.0x"] == "done"
    again = outcomes("run", "--trim.loop.samples", "40", "--evaluate.retrieval_pairs", "8")
    assert (again["trim-statement-1.0x"], again["evaluate-pretrain"]) == ("skipped", "done")


def test_a_failed_stage_does_not_stop_others_and_is_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    # No text of the loader's length is known to be too short for this one before the data's own are seen.
    assert run(out, "--trim.targets", "[1.0, 8.5]", "--json") == 2
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["failures"]) == ["trim-statement-8.5x"]
    assert printed["stages"]["evaluate-trim-statement-1.0x"] == "done"
    assert printed["stages"]["evaluate-trim-statement-8.5x"] == "blocked"
    assert (out / "report.html").exists()
    assert read_json(out / "run.json")["finished"] is None


def test_fresh_starts_over_once_a_launch_and_removes_nothing_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    out = tmp_path / "run"
    assert run(out, command="pretrain") == 0
    (out / "notes.txt").write_text("mine")
    checkpoint = out / "stages" / "pretrain" / "mark"
    checkpoint.touch()
    assert run(out, "--fresh", command="pretrain") == 0
    assert not checkpoint.exists()
    checkpoint.touch()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(out, "--fresh", command="pretrain") == 0
    assert checkpoint.exists()
    assert run(out, "--fresh", command="pretrain") == 0  # by a person, within the job that was queued again
    assert not checkpoint.exists()
    for left in (".data.removed", ".data.taken", ".stages.removed"):
        (out / left).mkdir()
    remove_run(out)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt"]


def test_starting_over_that_is_stopped_leaves_a_folder_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any) -> None:
        raise UserError("stopped")

    out = tmp_path / "run"
    assert run(out, command="pretrain") == 0
    (out / "notes.txt").write_text("mine")
    first = read_json(out / "run.json")["id"]
    with monkeypatch.context() as patched:
        patched.setattr("launch.run.check_kept", stopped)
        assert run(out, "--fresh", command="pretrain") == 2
    assert not (out / "stages").exists() and (out / "notes.txt").exists()
    assert run(out, command="pretrain") == 0
    assert read_json(out / "run.json")["id"] != first


def test_a_run_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data_prep.lock import FolderLock

    with FolderLock(tmp_path):
        (tmp_path / "run.json").write_text("{}")
        assert run(tmp_path) == 2
    assert "in use by process" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_losses(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    for step in (1, 4):
        killed = process(out)
        wait_for_step(out / "stages" / "pretrain" / "metrics.jsonl", step, killed)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert read_status(out / "stages" / "pretrain")["state"] == "running"
    assert run(out) == 0
    pretrained = read_status(out / "stages" / "pretrain")
    assert pretrained["restarts"] == 2
    for stage in STAGES[1:4]:
        assert losses(out, stage) == losses(finished, stage)
    # What the killed starts took is in the account.
    trained = json.loads((out / "stages" / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    assert read_json(out / "run.json")["seconds"] >= pretrained["seconds"] >= trained


def wait_for_step(metrics: Path, step: int, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    stopped = process(out, "--pretrain.loop.samples", "100000")
    wait_for_step(out / "stages" / "pretrain" / "metrics.jsonl", 1, stopped)
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert errors.splitlines()[-1] == "stopped; run the same command again to continue"
    assert "Traceback" not in errors
    assert main(["status", str(out)]) == 0
    if number == signal.SIGTERM:  # which gives notice: nothing is lost
        stage = out / "stages" / "pretrain"
        assert newest_step(stage / "checkpoints") == losses(out, "pretrain")[-1]["step"]
        assert read_status(stage)["state"] == "running"


def test_a_budget_ends_training_in_time_with_complete_stages(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--pretrain.loop.samples", "1000000", "--trim.loop.samples", "1000000", "--budget.minutes", "0.05")
    began = time.monotonic()
    assert run(out, *words, "--trim.targets", "[1.0]") == 0
    assert time.monotonic() - began < 60
    assert read_status(out / "stages" / "trim-statement-1.0x")["state"] == "done"


def test_every_stage_of_the_demo_is_known_beforehand(tmp_path: Path) -> None:
    config = read_config(RunConfig, [find_recipe("runs/demo")], [])
    from launch.local_backend import LocalBackend

    stages = build_stages(config, tmp_path, LocalBackend(0, 1))
    assert [stage.name for stage in stages] == list(STAGES)
    assert tasks_of(config)[0].trim_name(1.25) == "trim-statement-1.25x"


def test_a_lock_that_a_killed_process_left_among_the_splits_stops_nothing(tmp_path: Path) -> None:
    sizes = ["--data.sizes", '{"train": 4, "val": 2, "test": 2, "unseen": 0}']
    config = read_config(RunConfig, [find_recipe(TINY)], sizes)
    from launch.local_backend import LocalBackend

    (tmp_path / "data/gone").mkdir(parents=True)
    (tmp_path / "data/.lock").write_text("1\n")
    shard = build_stages(config, tmp_path, LocalBackend(0, 1))[0]
    shard.folder.mkdir(parents=True)
    assert shard.run(Attempt(folder=shard.folder, resumed=False))["written"] == 8
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test", "train", "val"]


@pytest.mark.timeout(300)
def test_ray_and_deepspeed_carry_a_run_through_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--launcher", "ray", "--cluster.workers", "2", "--cluster.cpus_per_worker", "0.5"]
    words += ["--engine.name", "deepspeed", "--trim.targets", "[1.0]"]
    killed = process(out, *words)
    wait_for_step(out / "stages" / "pretrain" / "metrics.jsonl", 1, killed)
    killed.kill()
    killed.wait()  # its pipes stay open longer, in two helpers of Ray's
    again = process(out, *words, "--json")
    printed, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert set(json.loads(printed)["stages"].values()) <= {"done", "skipped"}
    assert read_status(out / "stages" / "pretrain")["restarts"] == 1
    assert "Traceback" not in errors
