"""What the processes of `trimline bench launch` do: the same pre-training as a bare loop, and as a stage of a run.

A gate between loader and loop lets each of them run a lap at a time, and takes the time; the others wait meanwhile.
"""

import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data_prep.files import read_json, write_json
from launch.job import Job, carry_out
from pipeline.checkpoint_places import COMPLETE, name_of
from pipeline.engine import OptimizerConfig, ParamGroup
from pipeline.engine_config import autocast_dtype
from pipeline.log_facts import peak_bytes
from pipeline.models.config import ModelConfig
from pipeline.pretrain import PretrainConfig, make_ready
from pipeline.process import Process
from pipeline.stage import Stage
from pipeline.worker import inputs_of, parse, run_job

T = TypeVar("T")

FIRST = "first.json"
_POLL_SECONDS = 0.005
_CHECKPOINT_SECONDS = 600.0


def go_file(lap: int) -> str:
    """The file that lets a lap begin."""
    return f"go-{lap}"


def lap_file(lap: int) -> str:
    """The file that tells of a finished lap."""
    return f"lap-{lap}.json"


@dataclass(frozen=True)
class Gate:
    """Lets steps through in laps.

    Attributes:
        folder: Where it is told to go, and tells what it saw.
        steps: Of a lap.
        laps: How many there are.
        checkpoints: Folder in which a checkpoint appears after every so many steps; None where none does.
        device: Whose work a lap waits for.
    """

    folder: Path
    steps: int
    laps: int
    checkpoints: Path | None
    device: torch.device

    @classmethod
    def of(cls, job: Job, process: Process) -> "Gate":
        """The gate that a job asks for."""
        folder, told = Path(job["folder"]), job["gate"]
        checkpoints = folder / "checkpoints" if told["checkpoints"] else None
        return cls(folder, told["steps"], told["laps"], checkpoints, process.torch_device)

    @property
    def begins(self) -> int:
        """Steps before the first lap: half of one, so that each checkpoint falls into the middle of a lap."""
        return self.steps // 2

    @property
    def head(self) -> int:
        """Steps of a lap that are over before its checkpoint is begun."""
        return self.steps - self.begins - 1

    @property
    def total(self) -> int:
        """Steps of the whole training; one is left behind the last lap, for a loop ends without asking for more."""
        return self.begins + self.laps * self.steps + 1

    def through(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; whoever asks for the next one is done with the step of the last."""
        stream = iter(batches)
        yield next(stream)
        write_json(self.folder / FIRST, {"time": time.time()})
        yield from itertools.islice(stream, self.begins - 1)
        for lap in range(self.laps):
            self._wait_for(self.folder / go_file(lap))
            began = time.perf_counter()
            yield from itertools.islice(stream, self.head)
            head_seconds = time.perf_counter() - began
            yield from itertools.islice(stream, self.steps - self.head)
            written = self._settle(lap)
            times = {"seconds": time.perf_counter() - began, "head_seconds": head_seconds, "head_steps": self.head}
            write_json(self.folder / lap_file(lap), {**times, "checkpoint_bytes": self._remove(written)})
        yield from stream

    def _settle(self, lap: int) -> Path | None:
        """Waits for all that the lap has begun: the device's work, and the checkpoint in the background."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.checkpoints is None:
            return None
        checkpoint = self.checkpoints / name_of((lap + 1) * self.steps)
        self._wait_for(checkpoint / COMPLETE, _CHECKPOINT_SECONDS)
        return checkpoint

    def _remove(self, checkpoint: Path | None) -> int:
        """Makes room for the next one; returns how large it was."""
        if checkpoint is None:
            return 0
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        shutil.rmtree(checkpoint)
        return size

    def _wait_for(self, path: Path, seconds: float = float("inf")) -> None:
        parent, end = os.getppid(), time.monotonic() + seconds
        while not path.exists():
            if os.getppid() != parent:
                raise RuntimeError("the bench has ended")
            if time.monotonic() > end:
                raise RuntimeError(f"{path} was not there after {seconds:g} s; the log says more")
            time.sleep(_POLL_SECONDS)


def stage(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """The pre-training stage as in a run, but for the gate."""
    return run_job(job, process, Gate.of(job, process).through)


def bare(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """The same model, losses, batches and optimizer in the loop that one would write by hand."""
    torch.set_num_threads(job["threads"])
    config, gate = parse(PretrainConfig, job["run"]["pretrain"]), Gate.of(job, process)
    inputs = inputs_of(job)
    ready = make_ready(config, parse(ModelConfig, job["run"]["model"]), inputs, Stage(gate.folder, process))
    task, clip = ready.task, inputs.engine.grad_clip or float("inf")
    dtype = autocast_dtype(inputs.engine, process.torch_device)
    optimizer = _adamw(config.optimizer.scaled(config.loop.global_batch), ready.groups)
    parameters = [parameter for group in ready.groups for parameter in group.params]

    def forward(*args: Any) -> Mapping[str, Tensor]:
        with torch.autocast(process.torch_device.type, dtype, enabled=dtype is not None):
            return task.module(*args)

    task.module.train()
    for step, batch in enumerate(gate.through(ready.batches(0, gate.total))):
        progress = step / gate.total
        task.before_update(progress)
        task.losses(forward, batch.to(process.device), progress).total.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        task.after_update(progress)
    return {"peak_bytes": peak_bytes(process.device)}


def _adamw(config: OptimizerConfig, groups: list[ParamGroup]) -> torch.optim.AdamW:
    described = [
        {
            "params": list(group.params),
            "lr": config.lr * group.lr_scale,
            "weight_decay": config.weight_decay if group.decay else 0.0,
        }
        for group in groups
    ]
    return torch.optim.AdamW(described, betas=config.betas, eps=config.eps, fused=True)


def main(path: str, device: str) -> None:
    """A plain process's whole life: the job in a file.

    Args:
        path: The file.
        device: Torch's device string.
    """
    carry_out(read_json(Path(path)), Process(device=device))


if __name__ == "__main__":
    main(*sys.argv[1:])
