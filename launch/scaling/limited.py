"""A command in a process and a session of its own, that ends within its time, and leaves no process behind."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.signals import uninterrupted

_GRACE_SECONDS = 15.0  # for a Ray session to end in order


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; negative for a signal.
        too_slow: Whether its time was over.
        seconds: That it took.
    """

    code: int
    too_slow: bool
    seconds: float


def run_limited(command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> Ended:
    """Runs a command to its end, or to the end of its time.

    Its standard input is a pipe that stays open as long as this process lives: by that the command can know.

    Args:
        command: Words.
        log: File for whatever it prints.
        seconds: Its time.
        environment: Of the process, all of it.
    """
    began, too_slow = time.monotonic(), False
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        too_slow = True
    finally:
        with uninterrupted():
            _end(process)
    return Ended(process.returncode, too_slow, time.monotonic() - began)


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
