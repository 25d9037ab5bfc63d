"""Signs of life of a training process: given while it works, missing when it hangs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.pulse import LEAVE, STUCK, FilePulse, born, clear_pulses, read_pulses

_STUCK = """
import sys, time
from pathlib import Path
from pipeline.pulse import FilePulse
stall = 0.2 if sys.argv[2] in ("hangs", "rests") else 0.0
with FilePulse(Path(sys.argv[1]), 1, stall_seconds=stall) as pulse:
    time.sleep(1.5)  # the first step takes as long as it takes
    pulse.step(1)
    if sys.argv[2] == "rests":
        pulse.rest()
        time.sleep(2.5)
        sys.exit(0)
    if sys.argv[2] == "loses a partner":
        pulse.lost("another worker was lost")
    if sys.argv[2] == "hears of it":
        pulse.lost("another worker was lost")
        pulse.end()
        time.sleep(4)
        sys.exit(0)
    def busy():
        time.sleep(60)
    busy()
"""


def run(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _STUCK, str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_a_sign_of_life_says_who_and_how_far_and_goes_with_the_process(tmp_path: Path) -> None:
    with FilePulse(tmp_path, 3) as pulse:
        first = read_pulses(tmp_path)[3]
        assert first["step"] is None and first["born"] == born(int(str(first["pid"])))
        pulse.step(7)
        end = time.monotonic() + 20
        while read_pulses(tmp_path)[3]["beat"] == 0:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert read_pulses(tmp_path)[3]["step"] == 7
    assert read_pulses(tmp_path) == {}


def test_a_process_whose_steps_stop_says_where_it_is_and_ends(tmp_path: Path) -> None:
    ended = run(tmp_path, "hangs")
    assert ended.returncode == STUCK
    assert "no step for 0.2 s after step 1" in ended.stderr
    assert "in busy" in ended.stderr
    assert read_pulses(tmp_path)[1]["stuck"] == "no step for 0.2 s after step 1"


def test_a_process_that_rests_is_not_stuck(tmp_path: Path) -> None:
    assert run(tmp_path, "rests").returncode == 0


_SUSPENDED = """
import sys, time
from pathlib import Path
from pipeline import pulse
pulse._GAP_SECONDS = 1.5
with pulse.FilePulse(Path(sys.argv[1]), 0, stall_seconds=2.0) as beating:
    beating.step(1)
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    beating.step(2)
"""


@pytest.mark.parametrize(("works", "code"), [(1.0, 0), (30.0, STUCK)])
def test_time_in_which_a_process_was_suspended_is_no_stall(tmp_path: Path, works: float, code: int) -> None:
    """As Slurm suspends a job; one that is stuck is still found out after it."""
    command = [sys.executable, "-c", _SUSPENDED, str(tmp_path), str(works)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == code


def test_a_process_that_waits_for_a_lost_one_ends_and_one_that_hears_of_it_does_so_itself(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = run(tmp_path, "loses a partner")
    assert ended.returncode == STUCK and time.monotonic() - began < 30
    assert "another worker was lost, after step 1" in ended.stderr and "in busy" in ended.stderr
    assert read_pulses(tmp_path)[1]["stuck"] == "another worker was lost, after step 1"
    assert run(tmp_path / "told", "hears of it").returncode == 0


def test_a_stuck_process_ends_though_nobody_reads_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    read, write = os.pipe()
    os.close(read)
    (tmp_path / "pulse.rank0.json").touch()
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w", buffering=1) as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        with pytest.raises(BrokenPipeError):
            FilePulse(tmp_path, 0)._give_up("no step for 1 s after step 1")
    assert ends == [STUCK]
    assert read_pulses(tmp_path)[0]["stuck"] == "no step for 1 s after step 1"


def test_a_request_to_leave_is_seen_and_is_not_left_to_the_next_attempt(tmp_path: Path) -> None:
    (tmp_path / LEAVE).touch()
    (tmp_path / "pulse.rank0.json").write_text("half a li")
    assert FilePulse(tmp_path, 0).asked_to_leave()
    assert read_pulses(tmp_path) == {}
    clear_pulses(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not FilePulse(tmp_path, 0).asked_to_leave()
