"""How a trial of `trimline scale` ends, what is kept of it, and when it is tried again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import write_json
from launch.config import RunConfig
from launch.graph import Attempt, Stage
from launch.machine import measures_on
from launch.reading import read_config
from launch.scaling.limited import Ended, run_limited
from launch.scaling.oom_kills import oom_kills
from launch.scaling.trial import TrialFailed, TrialKilled, Work, carried_out, machine_in_words, outcome
from pipeline.measure.scale_trial import TrialPlan
from tests.launch.gone import gone

TINY = Path(__file__).parent / "tiny.yaml"
GIB = 2**30


def words_of(folder: Path, text: str) -> Path:
    (folder / "process.txt").write_text(text)
    return folder


def test_each_end_has_its_word(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"peak_bytes": 5})
    fine = outcome(words_of(tmp_path, ""), Ended(0, False, 2.0), 60)
    assert (fine["status"], fine["peak_bytes"]) == ("ok", 5)
    slow = outcome(words_of(tmp_path, ""), Ended(-15, True, 60.1), 60)
    assert (slow["status"], slow["reason"]) == ("too slow", "not done after 60 s")
    for code, text in [(1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried"),
                       (1, "OutOfMemoryError: CUDA out of memory. Tried")]:  # fmt: skip
        assert outcome(words_of(tmp_path, text), Ended(code, False, 1.0), 60)["status"] == "out of memory"
    with pytest.raises(TrialFailed, match="the last line"):
        outcome(words_of(tmp_path, "first\nthe last line\n\n"), Ended(1, False, 1.0), 60)
    with pytest.raises(TrialFailed, match="ended with code 3"):
        outcome(words_of(tmp_path, ""), Ended(3, False, 1.0), 60)
    guess = "the process ended without a word; it may have run out of memory"
    with pytest.raises(TrialFailed, match=guess):  # a crash of any kind: not to be kept as a matter of memory
        outcome(words_of(tmp_path, guess), Ended(1, False, 1.0), 60)
    write_json(
        tmp_path / "over_memory.rank1.json", {"peak_bytes": 2 * GIB, "limit_bytes": GIB, "total_bytes": None, "step": 0}
    )
    over = outcome(tmp_path, Ended(1, False, 1.0), 60)
    assert over["reason"] == "2.000 GiB before the end of its first step, more than the 1 GiB that it may have"


LOST = "a worker process of b8 ended without a result (the process ended without a word)"


@pytest.mark.parametrize(
    ("ended", "words", "said"),
    [
        (
            Ended(-9, False, 1.0, GIB // 2, 1),
            "x",
            "it was killed while the kernel killed a process for want of",
        ),
        (
            Ended(1, False, 1.0, GIB // 2, 2),
            LOST,
            "it was killed while the kernel killed 2 processes",
        ),
        (
            Ended(-9, False, 1.0, 2 * GIB, 0),
            "",
            "it was killed above the 1 GiB that it may have; it had held 2.0",
        ),
        (Ended(-9, False, 1.0, 2 * GIB, None), "", "it was killed above the 1 GiB that it may have"),
    ],
)
def test_a_killed_process_was_out_of_memory_where_something_says_so(
    tmp_path: Path, ended: Ended, words: str, said: str
) -> None:
    found = outcome(words_of(tmp_path, words), ended, 60, GIB)
    assert found["status"] == "out of memory" and found["reason"].startswith(said)
    assert found["peak_bytes"] == ended.peak_bytes


@pytest.mark.parametrize(
    ("ended", "kind", "said"),
    [
        (
            Ended(-9, False, 1.0, GIB // 2, 0),
            TrialKilled,
            r"by SIGKILL; it had held 0\.500 GiB; the kernel killed",
        ),
        (
            Ended(-9, False, 1.0, None, None),
            TrialKilled,
            "ended from outside by SIGKILL; the same command tries",
        ),
        (Ended(-15, False, 1.0, GIB // 2, 3), TrialKilled, "ended from outside by SIGTERM"),
        (Ended(-11, False, 1.0, 2 * GIB, 0), TrialFailed, r"its process crashed \(SIGSEGV\): here it was"),
        (Ended(1, False, 1.0, 2 * GIB, 1), TrialFailed, "here it was"),  # an error of its own, whoever else was killed
    ],
)
def test_an_end_that_nothing_explains_is_no_finding_of_memory(
    tmp_path: Path, ended: Ended, kind: type[TrialFailed], said: str
) -> None:
    with pytest.raises(kind, match=said):
        outcome(words_of(tmp_path, "here it was"), ended, 60, GIB)


def test_the_kernels_count_is_that_of_the_own_group_where_it_is_kept(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert oom_kills(tmp_path) is None
    write("proc/vmstat", "nr_free_pages 1\noom_kill 7\n")
    assert oom_kills(tmp_path) == 7
    write("proc/self/cgroup", "4:cpu,memory:/jobs/one\n0::/slice/two\n")
    assert oom_kills(tmp_path) == 7
    write("sys/fs/cgroup/slice/two/memory.events", "low 0\noom 2\noom_kill 1\n")
    assert oom_kills(tmp_path) == 1
    write("sys/fs/cgroup/memory/jobs/one/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert oom_kills(tmp_path) == 3


_KILLED = """
import os, sys
from pathlib import Path
from launch.scaling.limited import run_limited
for size in (2**30, 1):
    script = f"import os; kept = bytes(1) * {size}; os.kill(os.getpid(), 9)"
    ended = run_limited([sys.executable, "-c", script], Path(os.devnull), 30.0, dict(os.environ))
    print(ended.code, ended.too_slow, ended.peak_bytes, ended.oom_kills)
"""


def test_what_a_process_held_is_known_when_it_is_killed() -> None:
    # By a process smaller than pytest: what it starts begins with its memory.
    done = subprocess.run([sys.executable, "-c", _KILLED], check=True, capture_output=True, text=True)
    large, small = (line.split() for line in done.stdout.splitlines())
    assert large[:2] == ["-9", "False"] and 2**30 < int(large[2]) < 2**30 + 2**27
    assert large[3] in ("0", "None")  # the kernel had no part in it
    assert small[2] == "None"  # no more than the process that started it


def is_gone_soon(pid: int) -> bool:
    """A killed process is there until the system has cleared it away."""
    end = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return gone(pid)


def test_what_is_too_slow_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    ended = run_limited([sys.executable, "-c", script], tmp_path / "log", 1.0, dict(os.environ))
    assert ended.too_slow and ended.code == -signal.SIGTERM and ended.seconds < 10
    assert is_gone_soon(int((tmp_path / "log").read_text()))
    script = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    ended = run_limited([sys.executable, "-c", script], tmp_path / "log", 30.0, dict(os.environ))
    assert (ended.code, ended.too_slow) == (0, False)
    assert is_gone_soon(int((tmp_path / "log").read_text()))  # what a trial leaves behind goes with it


# What is kept of a trial.


class Told:
    """Hears what is told of stages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage_started(self, stage: Stage, attempt: Attempt) -> None:
        self.said.append(f"started {stage.says}".strip())

    def stage_ended(self, stage: Stage, outcome: str, seconds: float, message: str) -> None:
        self.said.append(outcome)


EXIT = "import os, sys; sys.exit(0) if os.environ['END'] == '0' else os.kill(os.getpid(), 9)"


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], tuple[dict[str, Any], list[str]]]:
    """Carries out one trial, whose process ends at once, well or killed."""
    run = read_config(RunConfig, [TINY], [])
    work = Work("b8-off", run, TrialPlan(steps=1), 30.0)

    def process(command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> Ended:
        folder = Path(command[-1])
        write_json(folder / "result.json", {"peak_bytes": 5})
        (folder / "metrics.jsonl").write_text('{"step": 1, "samples": 8, "loss": 2.5}\n')
        return run_limited([sys.executable, "-c", EXIT], log, seconds, environment)

    monkeypatch.setattr("launch.scaling.trial.run_limited", process)

    def carry_out(killed: bool) -> tuple[dict[str, Any], list[str]]:
        monkeypatch.setenv("END", str(int(killed)))
        told = Told()
        return carried_out(work, tmp_path / "b8-off", tmp_path, "digest", told), told.said

    return carry_out


def test_a_trial_that_somebody_killed_is_named_so_and_tried_again(tried: Any) -> None:
    found, said = tried(True)
    assert found["status"] == "killed" and "SIGKILL" in found["reason"] and said == ["started", "failed"]
    found, said = tried(False)
    assert (found["status"], found["peak_bytes"], said) == ("ok", 5, ["started", "done"])
    assert found["lines"] == [{"samples": 8, "loss": 2.5, "noise_scale": None, "critical_batch": None}]
    assert tried(True)[1] == ["skipped"]


def test_a_trial_of_another_machine_or_torch_is_measured_again_and_says_so(
    tried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = measures_on(False)
    assert tried(False)[0]["machine"] == here
    elsewhere = {**here, "processor": "Another CPU"}
    monkeypatch.setattr("launch.scaling.trial.measures_on", lambda gpu: elsewhere)
    found, said = tried(False)
    assert found["machine"] == elsewhere and said == [f"started measured before on {machine_in_words(here)}", "done"]
    monkeypatch.setattr("launch.scaling.trial.measures_on", lambda gpu: {**elsewhere, "torch": "1.0"})
    assert tried(False)[1][0].startswith("started measured before on Another CPU")
    assert tried(False)[1] == ["skipped"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "done", "outputs": []}'])
def test_a_result_that_cannot_be_read_is_measured_again(tried: Any, tmp_path: Path, text: str) -> None:
    tried(False)
    path = tmp_path / "b8-off" / "status.json"
    if text.startswith('{"'):
        text = json.dumps({**json.loads(path.read_text()), "outputs": []})
    path.write_text(text)
    assert tried(False)[1] == ["started", "done"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "outputs": {"status": "fine"}}))
    assert tried(False)[1] == ["started", "done"]
