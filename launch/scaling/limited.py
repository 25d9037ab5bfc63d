"""A command in a process and a session of its own, that ends within its time, and leaves no process behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.scaling.oom_kills import oom_kills
from launch.signals import uninterrupted
from pipeline.log_facts import process_peak_bytes

_GRACE_SECONDS = 15.0  # for a Ray session to end in order
_POLL_SECONDS = 0.02
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; negative for a signal.
        too_slow: Whether its time was over.
        seconds: That it took.
        peak_bytes: The most that it, or a process that it waited for, had in main memory; None where it is not known:
            it was too slow, or held less than this process, of whose memory every process that it starts begins.
        oom_kills: Processes that the kernel killed for want of memory meanwhile (see `oom_kills`); None where it does
            not say.
    """

    code: int
    too_slow: bool
    seconds: float
    peak_bytes: int | None = None
    oom_kills: int | None = None


def run_limited(command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> Ended:
    """Runs a command to its end, or to the end of its time.

    Its standard input is a pipe that stays open as long as this process lives: by that the command can know.

    Args:
        command: Words.
        log: File for whatever it prints.
        seconds: Its time.
        environment: Of the process, all of it.
    """
    began, killed_before = time.monotonic(), oom_kills()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        in_time, peak = _wait(process, began + seconds)
    finally:
        with uninterrupted():
            _end(process)
    killed_after = oom_kills()
    killed = None if killed_before is None or killed_after is None else killed_after - killed_before
    return Ended(process.returncode, not in_time, time.monotonic() - began, peak, killed)


def _wait(process: subprocess.Popen[bytes], end: float) -> tuple[bool, int | None]:
    """Waits for a process; whether it ended before its time was over, and the most memory that it had, if known."""
    while time.monotonic() < end:
        # Not `process.wait`: only who collects a process is told what it used.
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            held = used.ru_maxrss * _MAXRSS_UNIT
            # The count begins with what the process that started it held: up to that it says nothing of its own.
            return True, held if held > process_peak_bytes() else None
        time.sleep(_POLL_SECONDS)
    return False, None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, where it has not, and with it all of its session that is left."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
