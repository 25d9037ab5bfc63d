"""`trimline scale` from the command to the report, stopped, and beyond its limits."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.measure.memory_limit import read_over
from tests.launch.gone import gone

TINY = Path(__file__).parent / "tiny.yaml"
SHARED = {
    "data.sizes": {"train": 64, "val": 16, "test": 0, "unseen": 0}, "evaluate.retrieval_splits": [],
    "evaluate.statement_splits": [], "trim.targets": [],
}  # fmt: skip


def experiment(tmp_path: Path, **more: Any) -> Path:
    asked = {
        "name": "tiny", "out": str(tmp_path / "scale"), "base": [str(TINY)],
        "shared": {**SHARED, "tracking.wandb": "offline"},
        "grid": {"global_batch": [8], "micro_batch": [4], "pruning": [False, "query"]},
        "samples": 32, "judge": {"batch": 16, "every_samples": 8}, "limits": {"seconds": 100}, **more,
    }  # fmt: skip
    path = tmp_path / "scale.yaml"
    path.write_text(yaml.safe_dump(asked, sort_keys=False))
    return path


def start(path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", "scale", str(path), "--json", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # one that has just ended has none
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def result(path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    process = start(path, *words)
    printed, errors = process.communicate()
    return process.returncode, json.loads(printed), errors


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_experiment_and_one_more_point(tmp_path: Path) -> None:
    largest = {"memory_gib": 4.0, "first": [4, 8], "most": 8, "pruning": [False, "query"]}
    path = experiment(tmp_path, largest=largest)
    code, data, errors = result(path)
    assert code == 0, errors
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == ["b8-off-m4", "b8-query-m4"]
    for row_ in rows.values():
        assert row_["status"] == "ok" and row_["steps"] == 4 and row_["accumulation"] == 2
        assert row_["samples_per_second"] > 0 and row_["peak_bytes"] > 0 and row_["gmacs_per_sample"] > 0
        assert row_["fixed_loss"] > 0 and row_["goal"] >= row_["fixed_loss"]
    off, query = data["largest"]["found"]
    assert off["largest"] == query["largest"] == 8 and not off["settled"]  # `most` is met first
    assert query["saved_bytes"]["visual_encoder"] < off["saved_bytes"]["visual_encoder"]
    assert query["predicted_gain"] > 1
    out = tmp_path / "scale"
    assert {"scale.json", "scale.csv", "report.html", "figures", "scale.yaml"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob("trials/*/checkpoints/*/COMPLETE"))
    assert list((out / "tracking" / "scale").rglob("run-*.wandb"))

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/status.json")}
    code, data, errors = result(path, "--points", '[{"global_batch": 16, "micro_batch": 4, "pruning": "query"}]')
    assert code == 0 and [row["name"] for row in data["rows"]][2] == "b16-query-m4"
    after = {path: path.stat().st_mtime_ns for path in out.glob("*/*/status.json")}
    assert set(after) - set(before) == {out / "trials" / "b16-query-m4" / "status.json"}
    assert {path: after[path] for path in before} == before  # nothing else ran


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_limits_that_nothing_fits_into_end_with_a_line(tmp_path: Path) -> None:
    path = experiment(
        tmp_path, limits={"memory_gib": 0.1, "seconds": 100}, grid={"global_batch": [8], "pruning": ["query"]}
    )
    code, data, errors = result(path)
    assert code == 2 and "Traceback" not in errors
    assert data["error"].startswith("none of 1 trials came to its end (1 out of memory); b8-query: ")
    record = read_over(tmp_path / "scale" / "trials" / "b8-query")
    assert record is not None and record["peak_bytes"] > record["limit_bytes"] and record["step"] == 0
    assert (tmp_path / "scale" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("launcher", "number"), [("local", signal.SIGTERM), ("local", signal.SIGKILL), ("ray", signal.SIGTERM)]
)
def test_a_stopped_experiment_leaves_no_process(tmp_path: Path, launcher: str, number: signal.Signals) -> None:
    two = {"launcher": launcher, "cluster.workers": 2, "engine.name": "deepspeed"}
    path = experiment(tmp_path, samples=10**7, shared={**SHARED, **two})
    process = start(path)
    trial = tmp_path / "scale" / "trials" / "b8-off-m4"
    while not (trial / "metrics.jsonl").exists() or not (trial / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    children = descendants(process.pid)
    assert len(children) > 2  # the trial's, and its two workers
    process.send_signal(number)
    process.communicate()
    end = time.monotonic() + 30
    while not all(gone(pid) for pid in children):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert process.returncode == (130 if number == signal.SIGTERM else -9)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_trials_of_two_workers_under_either_launcher(tmp_path: Path, launcher: str) -> None:
    shared = {**SHARED, "engine.name": "deepspeed", "launcher": launcher}
    grid = {"global_batch": [8], "micro_batch": [4], "pruning": ["query"], "workers": [2], "zero_stage": [2]}
    code, data, errors = result(experiment(tmp_path, shared=shared, grid=grid))
    assert code == 0, errors
    (row_,) = data["rows"]
    assert (row_["status"], row_["workers"], row_["zero_stage"], row_["accumulation"]) == ("ok", 2, 2, 1)
    trial = tmp_path / "scale" / "trials" / row_["name"]
    lines = (trial / "metrics.jsonl").read_text().splitlines()
    assert "gradient/noise" in json.loads(lines[0])  # two workers are two parts
