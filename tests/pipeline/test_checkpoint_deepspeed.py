"""Checkpoints that two DeepSpeed ranks write together."""

import os
import random
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoint import CheckpointStore
from pipeline.engine import Engine, EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.process import Process
from tests.pipeline.distributed import RankPool, preloaded, run_ranks

SAVED_AT = 3
STEPS = 6


class Run:
    """A training run with what pre-training has: dropout, a momentum tower, a queue, state outside the engine."""

    def __init__(self, process: Process, config: EngineConfig | None = None) -> None:
        torch.manual_seed(0)
        self.process = process
        self.module = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.GELU(), nn.Linear(16, 4))
        groups = split_decay(self.module)
        self.engine: Engine = build_engine(
            config or EngineConfig(), OptimizerConfig(lr=1e-2), self.module, groups, process
        )
        torch.manual_seed(1 + process.rank)
        self.tower = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.queue = torch.zeros(6, 4)
        self.done = 0

    def step(self) -> float:
        x = torch.randn(8, 4)
        target = torch.tanh(nn.functional.linear(x, self.tower["0.weight"][:4]))
        loss = (self.engine(x) - target - self.queue.mean(0)).square().mean()
        report = self.engine.step(loss, 1.0)
        for name, tensor in self.module.state_dict().items():
            self.tower[name].lerp_(tensor, 0.1)
        self.queue[self.done % 6] = self.tower["3.bias"]
        self.done += 1
        return report.loss

    def save(self, store: CheckpointStore) -> None:
        tensors: dict[str, Tensor] = {**self.tower, "queue": self.queue}
        store.save(self.done, self.engine, tensors, {"done": self.done})

    def resume(self, store: CheckpointStore) -> None:
        checkpoint = store.latest()
        assert checkpoint is not None
        tensors, values = checkpoint.restore(self.engine, self.process)
        self.queue = tensors.pop("queue")
        self.tower = tensors
        self.done = values["done"]


def undisturbed(process: Process, folder: Path) -> list[float]:
    """All steps, with a checkpoint on the way."""
    run = Run(process)
    losses = [run.step() for _ in range(SAVED_AT)]
    run.save(CheckpointStore(folder, process=process))
    losses += [run.step() for _ in range(SAVED_AT, STEPS)]
    run.engine.close()
    return losses


def resumed(process: Process, folder: Path) -> list[float]:
    """The steps after the checkpoint."""
    run = Run(process)
    run.resume(CheckpointStore(folder, process=process))
    losses = [run.step() for _ in range(run.done, STEPS)]
    run.engine.close()
    return losses


def test_a_resumed_run_equals_an_undisturbed_one_loss_by_loss(tmp_path: Path) -> None:
    expected = run_ranks(undisturbed, 2, tmp_path)
    assert expected[0] == expected[1], "the reported loss is the average over ranks"
    found = run_ranks(resumed, 2, tmp_path)
    assert found == [losses[SAVED_AT:] for losses in expected]


def test_each_file_is_named_by_the_manifest(tmp_path: Path) -> None:
    run_ranks(undisturbed, 2, tmp_path)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        f"step_00000003/{name}"
        for name in (
            "COMPLETE",
            "engine_0.safetensors",
            "engine_1.safetensors",
            "manifest.json",
            "rank_0.safetensors",
            "rank_1.safetensors",
            "state.safetensors",
            "values.json",
        )
    ]


def disk_full_on(process: Process, folder: Path, rank: int) -> tuple[str, float]:
    """What saving says where one rank cannot write, and how long it takes; then training goes on."""
    run = Run(process)
    store = CheckpointStore(folder, process=process)
    run.save(store)
    run.step()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if process.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    began, said = time.monotonic(), "nothing"
    try:
        run.save(store)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    seconds = time.monotonic() - began
    run.step()
    run.save(store)
    run.engine.close()
    return said, seconds


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_is_said_by_all_at_once(tmp_path: Path, rank: int) -> None:
    for said, seconds in run_ranks(disk_full_on, 2, tmp_path, rank):
        assert said.startswith("DiskFull") and "free some space" in said
        assert seconds < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000000", "step_00000002"]


def save_again_and_again(process: Process, folder: Path) -> None:
    run = Run(process)
    while True:
        run.step()
        run.save(CheckpointStore(folder, process=process))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_while_two_ranks_save(tmp_path: Path) -> None:
    for kill in range(3):
        pool = RankPool(2)
        pool.send(save_again_and_again, (tmp_path,))
        while not list(tmp_path.glob("step_*/COMPLETE")):
            time.sleep(0.01)
        time.sleep(0.2 + 0.037 * kill)
        pool.kill()
        checkpoint = CheckpointStore(tmp_path).latest()
        assert checkpoint is not None
        losses = run_ranks(resume_and_step, 2, tmp_path, timeout=90)
        assert losses[0] == losses[1]
        for path in tmp_path.glob("step_*/COMPLETE"):
            os.remove(path)


def resume_and_step(process: Process, folder: Path) -> float:
    run = Run(process)
    run.resume(CheckpointStore(folder, process=process))
    loss = run.step()
    run.engine.close()
    return loss


def save_as_fast_as_possible(process: Process, folder: Path) -> None:
    """One checkpoint after the other in the background, each with the weights of its own step."""
    run, store = Run(process), CheckpointStore(folder, process=process)
    while True:
        run.step()
        marked = {**run.tower, "queue": run.queue, "norm": run.engine.weights()["0.weight"].norm()}
        store.begin(run.done, run.engine, marked, {"done": run.done})


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_during_a_checkpoint_at_fifty_random_moments_the_newest_complete_one_loads(tmp_path: Path) -> None:
    chance, context = random.Random(0), preloaded(__name__)
    states: Counter[tuple[str, ...]] = Counter()
    for _ in range(200):
        pool = RankPool(2, context)
        pool.send(save_as_fast_as_possible, (tmp_path,))
        while not list(tmp_path.glob("step_*/COMPLETE")):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        pool.kill()
        states[tuple(sorted(describe(path) for path in tmp_path.iterdir() if not is_complete(path)))] += 1
        check_newest(tmp_path)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if states.total() - states[()] == 50:
            break
    print(f"what the kills left besides complete checkpoints: {dict(states)}")
    assert states.total() - states[()] == 50, "too few kills hit a checkpoint that was being written"
    assert len(states) > 2


def is_complete(path: Path) -> bool:
    return path.name.startswith("step_") and (path / "COMPLETE").exists()


def describe(path: Path) -> str:
    """How far a checkpoint was: where, and which files there are."""
    return f"{path.name.partition('step')[0]}[{' '.join(sorted(file.name for file in path.iterdir()))}]"


def check_newest(folder: Path) -> None:
    """It loads on one rank and under another engine, which takes all that the two have written."""
    complete = [int(path.parent.name.removeprefix("step_")) for path in folder.glob("step_????????/COMPLETE")]
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None and checkpoint.step == max(complete)
    run = Run(Process(), EngineConfig(name="torch"))
    tensors, values = checkpoint.restore(run.engine, run.process)
    assert values["done"] == checkpoint.step
    torch.testing.assert_close(run.engine.weights()["0.weight"].norm(), tensors["norm"])
