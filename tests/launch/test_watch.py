"""Whoever falls silent is ended from outside, whoever is slow is not."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launch.watch import Watch
from pipeline.pulse import LEAVE, read_pulses

_ALIVE = """
import sys, time
from pathlib import Path
from pipeline.pulse import FilePulse
with FilePulse(Path(sys.argv[1]), 1):
    time.sleep(100)
"""


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", _ALIVE, str(tmp_path)])
    wait_for(lambda: 1 in read_pulses(tmp_path))
    yield process
    process.kill()
    process.wait()


def wait_for(true: Callable[[], bool], seconds: float = 50) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def kill(pulse: Mapping[str, Any]) -> bool:
    os.kill(pulse["pid"], signal.SIGKILL)
    return True


def test_a_stopped_process_is_ended_and_a_living_one_is_not(tmp_path: Path, alive: subprocess.Popen[bytes]) -> None:
    with Watch(tmp_path, 4.0, kill, lambda: False) as watch:
        time.sleep(5.0)
        assert alive.poll() is None and watch.why is None
        alive.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        assert alive.wait(50) == -signal.SIGKILL
        assert time.monotonic() - stopped > 3.0
        wait_for(lambda: watch.why is not None)
        assert watch.why == "worker 1 stuck (no sign of life for 4 s)"


def test_nobody_is_ended_where_that_is_switched_off_or_did_not_work(
    tmp_path: Path, alive: subprocess.Popen[bytes]
) -> None:
    alive.send_signal(signal.SIGSTOP)
    tried: list[int] = []

    def fail(pulse: Mapping[str, Any]) -> bool:
        tried.append(pulse["pid"])
        return False

    with Watch(tmp_path, 0.0, kill, lambda: False), Watch(tmp_path, 1.0, fail, lambda: False) as watch:
        wait_for(lambda: len(tried) >= 2)
        assert watch.why is None
    assert alive.poll() is None


def test_a_job_that_could_grow_is_asked_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.watch._GROWTH_SECONDS", 0.1)
    room = [False, False, True]
    sign = tmp_path / "pulse.rank0.json"
    sign.write_text('{"rank": 0, "step": null}')
    with Watch(tmp_path, 0.0, kill, lambda: room.pop(0)):
        time.sleep(2.0)
    assert len(room) == 3  # before the first step nobody is asked
    sign.write_text('{"rank": 0, "step": 1}')
    with Watch(tmp_path, 0.0, kill, lambda: room.pop(0)):
        wait_for((tmp_path / LEAVE).exists)
    assert room == []


def test_a_look_that_fails_is_told_once_and_does_not_end_the_watch(
    tmp_path: Path, alive: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    alive.send_signal(signal.SIGSTOP)
    tried: list[int] = []

    def fail_twice(pulse: Mapping[str, Any]) -> bool:
        tried.append(pulse["pid"])
        if len(tried) <= 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return kill(pulse)

    with Watch(tmp_path, 1.0, fail_twice, lambda: False) as watch:
        assert alive.wait(50) == -signal.SIGKILL
        wait_for(lambda: watch.why is not None)
    assert len(tried) == 3
    assert [line for line in caplog.messages if "trying again" in line and "Stale file handle" in line] == [
        f"{tmp_path.name}: the look for workers that fell silent failed; trying again: [Errno 116] Stale file handle"
    ]


def test_room_that_cannot_be_asked_for_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.watch._GROWTH_SECONDS", 0.1)
    (tmp_path / "pulse.rank0.json").write_text('{"rank": 0, "step": 1}')
    asked: list[int] = []

    def lost_then_there() -> bool:
        asked.append(1)
        if len(asked) == 1:
            raise ConnectionError("Ray does not answer")
        return True

    with Watch(tmp_path, 0.0, kill, lost_then_there):
        wait_for((tmp_path / LEAVE).exists)
    assert len(asked) == 2


def test_a_sign_of_life_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "pulse.rank0.json").mkdir()  # whoever reads it, root too, gets an OSError
    (tmp_path / "pulse.rank1.json").write_text('{"rank": 1, "step": 1}')
    assert set(read_pulses(tmp_path)) == {1}
