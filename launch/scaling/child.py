"""The process of one trial: starts its workers as the run's launcher says, and ends with them.

python -m launch.scaling.child FOLDER     # reads FOLDER/config.yaml and FOLDER/job.json, writes FOLDER/result.json
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.answers import INTERNAL, USER_MISTAKE
from launch.backend import Backend
from launch.config import RunConfig
from launch.graph import StageFailed, one_line
from launch.job import Job, carry_out
from launch.reading import read_config
from launch.run import make_backend
from launch.signals import stopped_by_sigterm
from pipeline.process import Process

CONFIG, JOB = "config.yaml", "job.json"
_GRACE_SECONDS = 15.0  # for a Ray session to end in order


class ProcessesBackend(Backend):
    """Several processes of this machine that form a gloo group, without Ray."""

    slots = 1

    def start(self) -> None:
        """Nothing to do."""

    def launch(self, job: Job, workers: int) -> BaseException | None:
        """See `Backend.launch`."""
        from launch.local_processes import run_processes

        ranks = [Process(rank=rank, world_size=workers, local_rank=rank) for rank in range(workers)]
        try:
            run_processes(carry_out, (dict(job),), ranks)
        except Exception as error:
            return error
        return None

    def _end_all(self) -> None:
        """Nothing to do: they end with `launch`."""


def main(arguments: Sequence[str]) -> int:
    """Carries a trial out; what it failed of stands in the last line on stderr."""
    _end_with_parent()
    folder = Path(arguments[0])
    config = read_config(RunConfig, [folder / CONFIG], [])
    workers = config.cluster.most
    several = config.launcher == "local" and workers > 1
    backend = ProcessesBackend() if several else make_backend(config, folder)
    with stopped_by_sigterm():
        try:
            backend.start()
            backend.run(read_json(folder / JOB), (workers,))
        except (UserError, StageFailed) as error:
            sys.stderr.write(f"{one_line(error)}\n")
            return USER_MISTAKE if isinstance(error, UserError) else INTERNAL
        finally:
            backend.stop()
    return 0


def _end_with_parent() -> None:
    """Ends this process where the one that started it has ended, whatever ended that one."""

    def wait() -> None:
        os.read(0, 1)  # the other end of the pipe is never written to; sys.stdin would hold a lock at the end
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
