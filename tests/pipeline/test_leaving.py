"""A training that is asked to leave saves and ends; who goes on comes to the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint_places import newest_step
from pipeline.data.batch import ImageTextBatch
from pipeline.engine import EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.loop_config import LoopConfig
from pipeline.process import Process
from pipeline.pulse import LEAVE, FilePulse, Left
from pipeline.stage import Stage
from pipeline.train import train
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import small_batch
from tests.pipeline.test_bad_updates import Poisoned

STEPS, LAST = 8, 3


def weights(process: Process, folder: Path, asked: bool) -> list[float]:
    """Trains, and is asked to leave while the batch of a step is loaded."""
    task = Poisoned(set(), 0, process)
    name = "torch" if process.world_size == 1 else "deepspeed"
    config = EngineConfig(name=name)  # type: ignore[arg-type]
    engine = build_engine(config, OptimizerConfig(lr=0.05), task.module, split_decay(task.module), process)
    pulse = FilePulse(folder, process.rank)

    def batches(start: int, end: int) -> Iterator[ImageTextBatch]:
        share = 4 // process.world_size
        for step in range(start, end):
            if asked and step == LAST and process.is_main:
                (folder / LEAVE).touch()
                pulse._looked = 0.0  # a second has passed
            yield small_batch(4, step).part(slice(process.rank * share, (process.rank + 1) * share))

    loop = LoopConfig(samples=4 * STEPS, global_batch=4, log_every=1, checkpoint_seconds=1000.0)
    try:
        train(task, engine, batches, loop, Stage(folder, process, pulse=pulse))
        return torch.cat([tensor.flatten() for tensor in engine.weights().values()]).tolist()
    finally:
        engine.close()


def leave(process: Process, folder: Path) -> str:
    with pytest.raises(Left) as left:
        weights(process, folder, asked=True)
    return str(left.value)


def go_on(process: Process, folder: Path) -> list[float]:
    return weights(process, folder, asked=False)


def test_training_leaves_with_a_checkpoint_and_goes_on_from_there(tmp_path: Path) -> None:
    assert leave(Process(), tmp_path / "left") == f"training left after step {LAST + 1}, as it was asked to"
    assert newest_step(tmp_path / "left" / "checkpoints") == LAST + 1
    (tmp_path / "left" / LEAVE).unlink()
    assert go_on(Process(), tmp_path / "left") == go_on(Process(), tmp_path / "whole")


@pytest.mark.slow
def test_all_ranks_leave_after_the_same_step(tmp_path: Path) -> None:
    said: list[Any] = run_ranks(leave, 2, tmp_path / "left")
    assert said == [f"training left after step {LAST + 1}, as it was asked to"] * 2
    assert newest_step(tmp_path / "left" / "checkpoints") == LAST + 1


def test_a_folder_without_checkpoints_is_at_step_0(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "none") == 0
