"""The stage graph with real small stages, which write real files."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from launch.graph import Attempt, GraphResult, Outcome, Stage, fingerprints, read_status, run_graph


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.resumed: list[str] = []
        self.ended: list[tuple[str, Outcome]] = []

    def stage_started(self, stage: Stage, attempt: Attempt) -> None:
        self.started.append(stage.name)
        if attempt.resumed:
            self.resumed.append(stage.name)

    def stage_ended(self, stage: Stage, outcome: Outcome, seconds: float, message: str) -> None:
        self.ended.append((stage.name, outcome))


def write(attempt: Attempt) -> Mapping[str, Any]:
    (attempt.folder / "result").write_text("made")
    return {"made": 1}


def stage(
    root: Path,
    name: str,
    *inputs: str,
    parts: Mapping[str, Any] | None = None,
    run: Callable[[Attempt], Mapping[str, Any]] = write,
    cpus: float = 1.0,
) -> Stage:
    folder = root / name
    return Stage(
        name=name, folder=folder, run=run, inputs=inputs, parts=parts or {}, outputs=(folder / "result",), cpus=cpus
    )


def go(*stages: Stage, cpus: float = 2) -> tuple[GraphResult, Recorder]:
    recorder = Recorder()
    return run_graph(stages, cpus, recorder), recorder


@pytest.mark.parametrize("cpus", [0, 2])
def test_inputs_run_before_their_users(tmp_path: Path, cpus: float) -> None:
    result, recorder = go(stage(tmp_path, "a"), stage(tmp_path, "b", "a"), stage(tmp_path, "c", "b"), cpus=cpus)
    assert recorder.started == ["a", "b", "c"]
    assert result.complete
    assert read_status(tmp_path / "c")["outputs"] == {"made": 1}


def test_finished_stages_are_skipped_and_not_run(tmp_path: Path) -> None:
    go(stage(tmp_path, "a"), stage(tmp_path, "b", "a"))
    result, recorder = go(stage(tmp_path, "a"), stage(tmp_path, "b", "a"))
    assert recorder.started == []
    assert set(result.outcomes.values()) == {"skipped"}
    assert result.complete


def test_a_changed_part_runs_the_stage_and_its_users_again_in_emptied_folders(tmp_path: Path) -> None:
    go(stage(tmp_path, "a"), stage(tmp_path, "b", parts={"lr": 1}), stage(tmp_path, "c", "b"))
    (tmp_path / "b" / "checkpoint").write_text("of the old configuration")
    stages = [stage(tmp_path, "a"), stage(tmp_path, "b", parts={"lr": 2}), stage(tmp_path, "c", "b")]
    _, recorder = go(*stages)
    assert sorted(recorder.started) == ["b", "c"]
    assert not (tmp_path / "b" / "checkpoint").exists()


def test_a_lost_output_runs_the_stage_again(tmp_path: Path) -> None:
    go(stage(tmp_path, "a"))
    (tmp_path / "a" / "result").unlink()
    _, recorder = go(stage(tmp_path, "a"))
    assert recorder.started == ["a"]


def test_a_failed_stage_stops_only_those_that_need_it(tmp_path: Path) -> None:
    def fail(attempt: Attempt) -> Mapping[str, Any]:
        raise UserError("bread=0 is too little;\n try 1")

    stages = [
        stage(tmp_path, "a"),
        stage(tmp_path, "bad", "a", run=fail),
        stage(tmp_path, "after", "bad"),
        stage(tmp_path, "good", "a"),
    ]
    result, _ = go(*stages)
    assert result.outcomes == {"a": "done", "bad": "failed", "after": "blocked", "good": "done"}
    assert result.failures["bad"].message == "bread=0 is too little; try 1"
    assert result.failures["bad"].by_user
    assert not result.complete
    assert read_status(tmp_path / "bad")["state"] == "failed"


def test_a_full_disk_is_the_users_to_mend_whoever_meets_it(tmp_path: Path) -> None:
    def fill(attempt: Attempt) -> Mapping[str, Any]:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"restarts")
        return {}

    result, _ = go(stage(tmp_path, "a", run=fill))
    assert result.failures["a"].by_user
    assert "No space left on device; free some space" in result.failures["a"].message


def test_a_stage_that_failed_goes_on_in_its_folder_and_counts_the_restart(tmp_path: Path) -> None:
    def first_fail_then_write(attempt: Attempt) -> Mapping[str, Any]:
        mark = attempt.folder / "checkpoint"
        if not mark.exists():
            mark.touch()
            raise ZeroDivisionError("a bug")
        return write(attempt)

    result, _ = go(stage(tmp_path, "a", run=first_fail_then_write))
    assert not result.failures["a"].by_user
    assert "ZeroDivisionError: a bug" in (tmp_path / "a" / "log.txt").read_text()
    result, recorder = go(stage(tmp_path, "a", run=first_fail_then_write))
    assert result.complete
    assert recorder.resumed == ["a"]
    assert read_status(tmp_path / "a")["restarts"] == 1


def test_a_stage_that_does_not_write_its_outputs_has_failed(tmp_path: Path) -> None:
    result, _ = go(stage(tmp_path, "a", run=lambda attempt: {}))
    assert result.outcomes == {"a": "failed"}
    assert "without writing" in result.failures["a"].message


def test_independent_stages_run_side_by_side_within_the_cpus(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)
    running, most = 0, 0
    lock = threading.Lock()

    def meet(attempt: Attempt) -> Mapping[str, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()
        with lock:
            running -= 1
        return write(attempt)

    result, _ = go(*(stage(tmp_path, name, run=meet) for name in "abcd"), cpus=2)
    assert result.complete
    assert most == 2


def test_a_stage_larger_than_the_machine_runs_alone(tmp_path: Path) -> None:
    busy = threading.Lock()

    def alone(attempt: Attempt) -> Mapping[str, Any]:
        assert busy.acquire(blocking=False)
        time.sleep(0.02)
        busy.release()
        return write(attempt)

    result, _ = go(*(stage(tmp_path, name, run=alone, cpus=5) for name in "abc"), cpus=2)
    assert result.complete


def test_an_interrupt_leaves_running_stages_unfinished_but_not_failed(tmp_path: Path) -> None:
    stopped, over = threading.Event(), threading.Event()

    def wait(attempt: Attempt) -> Mapping[str, Any]:
        try:
            assert stopped.wait(20)
            raise ConnectionError("its process was stopped")
        finally:
            over.set()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_graph([stage(tmp_path, "a", run=wait)], 2, Recorder(), meanwhile=interrupt)
    stopped.set()
    assert over.wait(20)
    assert read_status(tmp_path / "a")["state"] == "running"


def test_preparation_is_left_out_where_nothing_has_to_run(tmp_path: Path) -> None:
    go(stage(tmp_path, "a"))
    for cpus in (0, 2):
        run_graph([stage(tmp_path, "a")], cpus, Recorder(), meanwhile=lambda: pytest.fail("nothing runs"))


def test_a_broken_status_file_counts_as_none(tmp_path: Path) -> None:
    go(stage(tmp_path, "a"))
    (tmp_path / "a" / "status.json").write_text('{"state": "do')
    result, recorder = go(stage(tmp_path, "a"))
    assert recorder.started == ["a"]
    assert result.complete


def test_a_fingerprint_depends_on_parts_and_inputs_only(tmp_path: Path) -> None:
    def digest(parts: int, root: str = "x", cpus: float = 1) -> str:
        stages = [stage(tmp_path / root, "a", parts={"n": parts}), stage(tmp_path / root, "b", "a", cpus=cpus)]
        return fingerprints(stages)["b"]

    assert digest(1) == digest(1, root="y", cpus=3)
    assert digest(1) != digest(2)


def test_an_input_that_stands_later_is_a_mistake_in_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must stand before"):
        go(stage(tmp_path, "b", "a"), stage(tmp_path, "a"))
