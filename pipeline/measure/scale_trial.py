"""What the processes of a trial of `trimline scale` do: a stretch of pre-training, with its times, memory and losses.

It is the training loop of any run; a watch stands between loader and loop, and ends it before it would write a
checkpoint.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import train_loader
from pipeline.engine import Engine, build_engine
from pipeline.log_facts import peak_bytes
from pipeline.measure.memory_limit import MemoryLimit
from pipeline.measure.saved_bytes import OUTSIDE, saved_by_module
from pipeline.measure.where import where
from pipeline.models.config import ModelConfig
from pipeline.objectives.gather import gather_constant, global_means
from pipeline.pretrain import PretrainConfig, Ready, check_pretrain, make_ready
from pipeline.process import Process
from pipeline.rng_state import seed_everything
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tracking import Tracker
from pipeline.train import train
from pipeline.worker import inputs_of, parse

Job = Mapping[str, Any]
_SETTLED_STEPS = 2  # after which memory does not grow any more


class Enough(Exception):
    """All steps of a trial are done; the loop is left where it asks for another batch."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """How far a trial goes, and what it looks at.

    Attributes:
        steps: Updates.
        memory_bytes: The most memory of each process (see `MemoryLimit`); None for no limit.
        evaluate_every: Steps between looks at the fixed batch; 0 for none.
        evaluation_split: Folder of the split that it comes from.
        evaluation_batch: Samples of it.
    """

    steps: int
    memory_bytes: int | None = None
    evaluate_every: int = 0
    evaluation_split: str = ""
    evaluation_batch: int = 0


@dataclass
class _Prepared:
    """A pre-training with its engine."""

    ready: Ready
    engine: Engine
    config: PretrainConfig
    inputs: Inputs
    stage: Stage


@dataclass
class StepWatch:
    """Stands between loader and loop.

    Attributes:
        prepared: What is trained.
        plan: Of the trial.
        limit: Is told of the steps.
        fixed: The batch that is looked at; None for none.
        seconds: Of each step, from asking for its batch to its end.
        waits: Of these, those until the batch was there.
        evaluations: What was seen.
        peak: Most memory of any process in the first steps: not before them, nor when the fixed batch has its share.
    """

    prepared: _Prepared
    plan: TrialPlan
    limit: MemoryLimit
    fixed: ImageTextBatch | None
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0

    def through(self, batches: Iterable[ImageTextBatch]) -> Iterator[ImageTextBatch]:
        """The batches; whoever asks for the next one is done with the step of the last.

        Raises:
            Enough: All steps are done.
        """
        device, stream = self.prepared.stage.process.torch_device, iter(batches)
        self.limit.forget_peak()
        for step in range(1, self.plan.steps + 1):
            began = time.perf_counter()
            batch = next(stream)
            self.waits.append(time.perf_counter() - began)
            yield batch
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds.append(time.perf_counter() - began)
            self.limit.step = step
            if step <= _SETTLED_STEPS:
                self.peak = _largest(peak_bytes(str(device)), device)
            if self.fixed is not None and looks_after(step, self.plan):
                with loaders_held():
                    self._evaluate(step, self.fixed)
        raise Enough

    def _evaluate(self, step: int, batch: ImageTextBatch) -> None:
        engine = self.prepared.engine
        engine.module.eval()
        named = global_means(self.prepared.ready.task.fixed_losses(engine, batch))
        engine.module.train()
        losses = {f"loss/{name}": float(value) for name, value in named.items()}
        samples = step * self.prepared.config.loop.global_batch
        position = {"step": step, "samples": samples, "seconds": sum(self.seconds)}
        self.evaluations.append({**position, "loss": sum(losses.values()), **losses})


@contextlib.contextmanager
def loaders_held() -> Iterator[None]:
    """Stops this process's loader processes meanwhile.

    What they load while nobody trains would be there without a wait afterwards, as it never is in a training.
    """
    loaders = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    try:
        _send(signal.SIGSTOP, loaders)
        yield
    finally:
        _send(signal.SIGCONT, loaders)


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile, of which the loader tells
            os.kill(pid, number)


def looks_after(step: int, plan: TrialPlan) -> bool:
    """Whether the fixed batch is looked at after a step: not before memory is settled, for a look takes memory too."""
    first = min(_SETTLED_STEPS, plan.steps)
    return step in (first, plan.steps) or (step > first and step % plan.evaluate_every == 0)


def run_trial(job: Job, process: Process) -> dict[str, Any]:
    """A trial in this process; all of its processes call it together.

    Args:
        job: As of `pipeline.worker.run_job`, with a ``plan`` (see `TrialPlan`).
        process: This process among those of the trial.

    Returns:
        ``step_seconds``, ``wait_seconds`` of these for data, ``peak_bytes`` (of the largest process), ``evaluations``
        on the fixed batch, ``macs`` of a sample's step, ``peak_flops`` of a device, where it is known, and
        ``machine``, the one that measured (see `Where`; of several workers the first one's).
    """
    plan = TrialPlan(**job["plan"])
    process.claim_device()
    torch.set_num_threads(job["threads"])
    with MemoryLimit(Path(job["folder"]), process, plan.memory_bytes) as limit:
        prepared = _prepare(job, process)
        watch = StepWatch(prepared, plan, limit, _fixed_batch(plan, prepared) if plan.evaluate_every else None)
        ready, stage = prepared.ready, replace(prepared.stage, between=watch.through)
        try:
            train(ready.task, prepared.engine, ready.batches, prepared.config.loop, stage, ready.facts)
        except Enough:
            pass
        else:
            raise RuntimeError(f"training ended before its {plan.steps} steps")
    return {
        "step_seconds": watch.seconds,
        "wait_seconds": watch.waits,
        "peak_bytes": watch.peak,
        "evaluations": watch.evaluations,
        "macs": ready.facts.macs,
        "peak_flops": ready.facts.peak_flops,
        "machine": where(process.torch_device),
    }


def run_saved(job: Job, process: Process) -> dict[str, Any]:
    """Bytes that one more sample keeps for the backward, by part of the model; what all samples share is left out.

    Args:
        job: As of `run_trial`, whose batch is looked at whole and in half.
        process: The only one.

    Returns:
        ``saved_bytes``: by part of the model; ``machine`` as of `run_trial`.
    """
    torch.set_num_threads(job["threads"])
    process.claim_device()
    prepared = _prepare(job, process)
    task, module = prepared.ready.task, prepared.engine.module
    batch = next(iter(prepared.ready.batches(0, 1))).to(process.device)
    standing = [*module.parameters(), *module.buffers(), *task.tensors().values()]
    kept: list[dict[str, int]] = []
    for count in (len(batch) // 2, len(batch)):
        part, sizes = batch.part(slice(0, count)), dict[str, int]()
        for name, size in saved_by_module(lambda: task.losses(prepared.engine, part, 1.0), standing, module).items():  # noqa: B023
            owner = part_of(name, task.model.config.text.text_layers)
            sizes[owner] = sizes.get(owner, 0) + size
        task.drop_update()
        kept.append(sizes)
    more = len(batch) - len(batch) // 2
    saved = {name: (size - kept[0].get(name, 0)) / more for name, size in kept[1].items()}
    return {"saved_bytes": saved, "machine": where(process.torch_device)}


def part_of(name: str, text_layers: int) -> str:
    """The part of a backbone that one of its submodules belongs to.

    Args:
        name: Of the submodule in a task's online model, such as ``model.text_encoder.bert.encoder.layer.4.output``.
        text_layers: Layers of the text encoder below those that fuse.
    """
    words = name.removeprefix("model.").split(".")
    if name == OUTSIDE or words == ["model"]:
        return "losses"
    layer = words[words.index("layer") + 1] if "layer" in words[:-1] else ""
    return "fusion" if words[0] == "text_encoder" and layer.isdecimal() and int(layer) >= text_layers else words[0]


def _prepare(job: Job, process: Process) -> _Prepared:
    config, model = parse(PretrainConfig, job["run"]["pretrain"]), parse(ModelConfig, job["run"]["model"])
    tracker = Tracker(peak_tflops=job["run"]["tracking"]["peak_tflops"])
    inputs, stage = inputs_of(job), Stage(Path(job["folder"]), process, tracker=tracker)
    settled = check_pretrain(config, model, inputs.loader, inputs.engine, process.world_size)
    ready = make_ready(config, model, inputs, stage)
    optimizer = config.optimizer.scaled(config.loop.global_batch)
    engine = build_engine(settled, optimizer, ready.task.module, ready.groups, process)
    seed_everything(inputs.seed, 1 + process.rank)
    return _Prepared(ready, engine, config, inputs, stage)


def _fixed_batch(plan: TrialPlan, prepared: _Prepared) -> ImageTextBatch:
    """This process's part of the batch that all trials are judged by: the first of its split's order."""
    loader = train_loader(
        [(Path(plan.evaluation_split), 1.0)],
        text="captions",
        unit="image",
        config=replace(prepared.inputs.loader, workers=0),
        tokenizer=prepared.ready.tokenizer,
        seed=prepared.inputs.seed,
        global_batch=plan.evaluation_batch,
        process=prepared.stage.process,
        steps=1,
    )
    batch: ImageTextBatch = next(iter(loader))
    return batch.to(prepared.stage.process.device)


def _largest(value: int, device: torch.device) -> int:
    """The largest of all processes' numbers."""
    return int(gather_constant(torch.tensor([value], device=device)).max())
