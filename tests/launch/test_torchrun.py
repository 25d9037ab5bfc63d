"""A stage under torchrun: a lost process, SIGTERM to all or to one of them, and a process that is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.checkpoint_places import newest_step
from pipeline.progress import read_metrics
from pipeline.pulse import born, is_running, read_pulses
from tests.launch.faulty.faults import wait_until
from tests.launch.test_run import ROOT, TINY, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, EVERY = 80, 10
_PATIENCE = 300.0
_OPTIONS = [
    "--engine.name=deepspeed", f"--pretrain.loop.samples={8 * STEPS}", "--pretrain.loop.checkpoint_seconds=10000",
    f"--checkpoint.keep_every_steps={EVERY}", "--trim.targets=[]", "--evaluate.statement_splits=[]",
]  # fmt: skip


class Torchrun:
    """`trimline pretrain` in two processes of torchrun's."""

    def __init__(self, out: Path, *words: str, restarts: int = 1) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
        self.stage = out / "stages" / "pretrain"
        self.out = out
        self.log = out.with_suffix(".txt")
        self.command = [
            sys.executable, *launcher, "-m", "launch", "pretrain", TINY, f"--out={out}", *_OPTIONS, *words,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            self.agent = subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def reach(self, step: int) -> dict[int, int]:
        """Waits for a step; the processes by rank."""
        wait_until(lambda: self.agent.poll() is not None or self.step() >= step, _PATIENCE, f"step {step}")
        assert self.agent.poll() is None, self.said()
        return {rank: int(str(pulse["pid"])) for rank, pulse in read_pulses(self.stage).items()}

    def step(self) -> int:
        lines = read_metrics(self.stage / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def wait(self) -> int:
        return self.agent.wait(_PATIENCE)

    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        for one in [*psutil.Process(self.agent.pid).children(recursive=True)] if self.agent.poll() is None else []:
            one.kill()
        self.agent.kill()
        self.agent.wait()


@pytest.fixture
def runs() -> Iterator[list[Torchrun]]:
    """Those started, which are ended after the test."""
    started: list[Torchrun] = []
    yield started
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Torchrun:
    run = Torchrun(tmp_path_factory.mktemp("undisturbed") / "run")
    try:
        assert run.wait() == 0, run.said()
    finally:
        run.end()
    return run


def check_same_end(run: Torchrun, other: Torchrun) -> None:
    assert losses(run.out, "pretrain") == losses(other.out, "pretrain")
    assert [line["step"] for line in losses(run.out, "pretrain")] == list(range(1, STEPS + 1))
    weights = ("export", "model.safetensors")
    assert run.stage.joinpath(*weights).read_bytes() == other.stage.joinpath(*weights).read_bytes()


def test_torchrun_starts_all_again_where_one_is_killed_and_they_go_on_from_the_checkpoint(
    tmp_path: Path, runs: list[Torchrun], undisturbed: Torchrun
) -> None:
    runs.append(run := Torchrun(tmp_path / "run", "--fresh", f"--checkpoint.path={tmp_path / 'kept'}"))
    pids = run.reach(35)
    os.kill(pids[1], signal.SIGKILL)
    assert run.wait() == 0, run.said()
    assert newest_step(tmp_path / "kept" / "pretrain") == STEPS
    assert "going on from" in (run.stage / "log.txt").read_text()
    check_same_end(run, undisturbed)


@pytest.mark.parametrize("whom", ["torchrun", "follower"])
def test_sigterm_to_all_or_to_one_saves_and_the_same_command_goes_on(
    whom: str, tmp_path: Path, runs: list[Torchrun], undisturbed: Torchrun
) -> None:
    runs.append(run := Torchrun(tmp_path / "run", restarts=0))
    pids = run.reach(25)
    os.kill({"torchrun": run.agent.pid, "follower": pids[1]}[whom], signal.SIGTERM)
    began = time.monotonic()
    assert run.wait() != 0, run.said()
    assert time.monotonic() - began < 30
    reached = losses(run.out, "pretrain")[-1]["step"]
    assert newest_step(run.stage / "checkpoints") == reached < STEPS
    assert "/pipeline/" not in run.said(), run.said()  # a traceback of torchrun's own it has
    run.start()
    assert run.wait() == 0, run.said()
    check_same_end(run, undisturbed)


def test_a_follower_that_is_stopped_is_ended_and_all_start_again(
    tmp_path: Path, runs: list[Torchrun], undisturbed: Torchrun
) -> None:
    runs.append(run := Torchrun(tmp_path / "run", "--cluster.silent_seconds=5"))
    pids = run.reach(25)
    os.kill(pids[1], signal.SIGSTOP)
    began, start = time.monotonic(), born(pids[1])
    wait_until(lambda: not is_running(pids[1], start), 60, "the end of the stopped one")
    assert time.monotonic() - began < 20
    assert run.wait() == 0, run.said()
    check_same_end(run, undisturbed)


def test_a_leader_that_is_stopped_leaves_the_others_stuck_and_they_end_themselves(
    tmp_path: Path, runs: list[Torchrun], undisturbed: Torchrun
) -> None:
    """Nobody looks after the leader: what is left is that no step ends."""
    runs.append(run := Torchrun(tmp_path / "run", "--cluster.stall_seconds=8"))
    pids = run.reach(25)
    os.kill(pids[0], signal.SIGSTOP)
    wait_until(lambda: "trimline: no step for 8 s after step" in run.said(), 60, "the end of the other")
    assert "its threads are at" in (run.stage / "log.rank1.txt").read_text() and "its threads are at" not in run.said()
    assert json.loads((run.stage / "pulse.rank0.json").read_text())["pid"] == pids[0]
    assert run.wait() == 0, run.said()
    check_same_end(run, undisturbed)
