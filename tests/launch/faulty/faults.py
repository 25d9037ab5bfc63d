"""The faults: what is done to a training that runs, what it is then to do by itself, and what somebody else must do."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.launch.faulty.nodes import NAN, Nodes

STEPS = 240
EVERY = 20  # steps from checkpoint to checkpoint
FILLER = "filler"
_MISSED_SECONDS = 60.0
_RANGE = ("--cluster.workers.min=1", "--cluster.workers.max=2")
_FILL = """
import sys, time, numpy, ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
kept = [ray.put(numpy.ones(10 * 2**20, numpy.uint8)) for _ in range(30)]
time.sleep(4)
"""


@dataclass(frozen=True)
class Training:
    """A training that is to be disturbed.

    Attributes:
        nodes: The cluster.
        stage: Folder of the stage.
        driver: Process of `trimline run`.
        workers: Processes of the workers, by rank.
        rank: That is to be hit where one is.
    """

    nodes: Nodes
    stage: Path
    driver: int
    workers: dict[int, int]
    rank: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: In words, for the table.
        inject: Does it.
        mend: What a scheduler or a person does some seconds later.
        mend_seconds: How much later; where there is an exit code, after the exit.
        exit_code: Of the run: where it is not 0, the same command is given once more, as somebody would.
        restarts: How often the stage is started again within the run.
        words: Further options of the run; {disk} is the small disk, {name} the run.
        same_size: Whether the number of workers stays, so that losses are those of an undisturbed run.
        steps: Of the training.
        says: What the run must have said.
    """

    name: str
    inject: Callable[[Training], None]
    mend: Callable[[Training], None] = lambda training: None
    mend_seconds: float = 0.0
    exit_code: int = 0
    restarts: int = 1
    words: tuple[str, ...] = ()
    same_size: bool = True
    steps: int = STEPS
    says: str = ""

    @property
    def fills_disk(self) -> bool:
        """Whether it takes the small disk, which not every machine lets be mounted."""
        return any("{disk}" in word for word in self.words)


def _kill(training: Training) -> None:
    os.kill(training.workers[training.rank], signal.SIGKILL)


def _freeze(training: Training) -> None:
    os.kill(training.workers[training.rank], signal.SIGSTOP)


def fill_disk(disk: Path) -> None:
    """Writes until nothing more fits.

    Raises:
        RuntimeError: It is a folder of a larger disk, which is not ours to fill.
    """
    if not os.path.ismount(disk):
        raise RuntimeError(f"{disk} is not a disk of its own, so it is not filled")
    with contextlib.suppress(OSError), open(disk / FILLER, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def _free_disk(training: Training) -> None:
    (training.nodes.disk / FILLER).unlink()


def _free_disk_once_missed(training: Training) -> None:
    """Frees it when a save has been left out: a fixed time might be over before one is due, or last until the end."""
    log = training.stage / "log.txt"
    missed = "going on without a checkpoint"
    wait_until(lambda: log.exists() and missed in log.read_text(), _MISSED_SECONDS, "a save that was left out")
    _free_disk(training)


def _break_loss(training: Training) -> None:
    (training.nodes.folder / f"{NAN}.{training.rank}").touch()


def _fill_object_store(training: Training) -> None:
    subprocess.Popen([sys.executable, "-c", _FILL, training.nodes.address])


FAULTS = {
    "kill": Fault(name="worker killed (SIGKILL)", inject=_kill),
    "node": Fault(
        name="node removed, another one comes after 5 s",
        inject=lambda training: training.nodes.remove(),
        mend=lambda training: training.nodes.add(),
        mend_seconds=5.0,
    ),
    "shrink": Fault(
        name="node removed, workers: {min: 1, max: 2}",
        inject=lambda training: training.nodes.remove(),
        words=_RANGE,
        same_size=False,
        says="going on from step",
    ),
    "grow": Fault(
        name="node removed, workers: {min: 1, max: 2}, another one comes after 20 s",
        inject=lambda training: training.nodes.remove(),
        mend=lambda training: training.nodes.add(),
        mend_seconds=20.0,
        words=_RANGE,
        same_size=False,
        steps=5 * STEPS,
        says="with 2 workers",
    ),
    "freeze": Fault(name="rank stopped (SIGSTOP)", inject=_freeze),
    "sigterm": Fault(
        name="SIGTERM to the run, same command again",
        inject=lambda training: os.kill(training.driver, signal.SIGTERM),
        exit_code=130,
        restarts=0,
    ),
    "disk": Fault(
        name="disk of the checkpoints full; space made, same command again",
        inject=lambda training: fill_disk(training.nodes.disk),
        mend=_free_disk,
        exit_code=2,
        restarts=0,
        words=("--checkpoint.path={disk}/{name}",),
    ),
    "disk_on": Fault(
        name="disk of the checkpoints full until a save was left out, if_full: go_on",
        inject=lambda training: fill_disk(training.nodes.disk),
        mend=_free_disk_once_missed,
        restarts=0,
        words=("--checkpoint.path={disk}/{name}", "--checkpoint.if_full=go_on"),
    ),
    "nan": Fault(
        name="loss NaN on one rank, bad_updates: rewind",
        inject=_break_loss,
        restarts=0,
        words=("--pretrain.loop.bad_updates.action", "rewind"),
    ),
    "store": Fault(name="object store full", inject=_fill_object_store, restarts=0),
}


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Looks every 50 ms; the time when it was true.

    Raises:
        TimeoutError: It did not become true.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)
    return time.time()
