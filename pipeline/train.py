"""The one training loop: batch, losses, step, log, checkpoint. It knows no objective and no launcher."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.bad_updates import BadUpdateConfig, BadUpdates, Rewind
from pipeline.checkpoint import CheckpointConfig, CheckpointStore
from pipeline.checkpoint_rules import Guard, Means
from pipeline.clock import Clock, ScheduleConfig
from pipeline.data.batch import ImageTextBatch
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.quarantine import count_reasons
from pipeline.engine import Engine, NonFiniteError, StepReport
from pipeline.lease import check_lease
from pipeline.limits import at_least
from pipeline.load_log import LoadTally
from pipeline.log_facts import LogFacts, memory, peak_bytes
from pipeline.measure.noise_scale import NoiseScale, NoiseScaleConfig
from pipeline.objectives.gather import global_sum
from pipeline.process import Process
from pipeline.progress import MetricsLog, ProgressFile
from pipeline.pulse import Left, Pulse
from pipeline.tasks.task import Losses, Task
from pipeline.tracking import Tracker
from pipeline.validation import Validation

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how often.

    Attributes:
        samples: Samples to train on, counting repeats; rounded up to whole steps.
        global_batch: Samples of a step over all processes.
        schedule: Learning rate over training.
        checkpoint_seconds: Time between checkpoints.
        log_every: Steps between lines of metrics.jsonl.
        bad_updates: What is done where a loss or gradient is not a number.
        noise_scale: How often the gradient noise scale is measured, where there are several processes or parts.
    """

    samples: int
    global_batch: int
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint_seconds: float = 60.0
    log_every: int = 10
    bad_updates: BadUpdateConfig = field(default_factory=BadUpdateConfig)
    noise_scale: NoiseScaleConfig = field(default_factory=NoiseScaleConfig)

    def __post_init__(self) -> None:
        at_least(self, "loop", 1, "samples", "global_batch", "log_every")
        at_least(self, "loop", 0, "checkpoint_seconds")

    @property
    def steps(self) -> int:
        """Steps of a whole training."""
        return -(-self.samples // self.global_batch)


Between = Callable[[Iterable[ImageTextBatch]], Iterable[ImageTextBatch]]
"""What all batches pass on their way from the loader to the loop: there a bench holds the loop, and takes the time."""


@dataclass(frozen=True)
class Stage:
    """Where a training lives and what bounds it.

    Attributes:
        folder: Of the stage in the run folder.
        process: This process.
        budget_seconds: Time after which it ends; None for no bound.
        checkpoint: Where its checkpoints go, and which of them stay.
        fingerprint: Of all that its result depends on: it goes on from checkpoints with the same one only.
        tracker: Is given the numbers of metrics.jsonl too.
        pulse: Is told of each step, and says when training is to leave.
        lease: Session of the run that holds the place of the checkpoints (see `pipeline.lease`); None where no other
            run can know that place.
        silent_seconds: Time without a sign of another process after which it counts as lost while a checkpoint is
            written; 0 for torch's own half hour.
        between: Stands between loader and loop.
    """

    folder: Path
    process: Process
    budget_seconds: float | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fingerprint: str = ""
    tracker: Tracker = field(default_factory=Tracker)
    pulse: Pulse = field(default_factory=Pulse)
    lease: str | None = None
    silent_seconds: float = 0.0
    between: Between = iter

    @property
    def checkpoints(self) -> Path | str:
        """The folder or URL of its checkpoints."""
        return self.checkpoint.place_of(self.folder)

    @property
    def checkpoint_note(self) -> Path | None:
        """The file that says where the newest checkpoint lies, where that is not in the folder."""
        return None if self.checkpoint.path is None else self.folder / CHECKPOINT

    @property
    def guard(self) -> Guard:
        """What the store of its checkpoints asks and tells."""
        path, lease = self.checkpoint.path, self.lease
        check = Guard().check if path is None or lease is None else partial(check_lease, path, lease)
        return Guard(check=check, silent_seconds=self.silent_seconds, on_loss=self.pulse.lost)


Batches = Callable[[int, int], Iterable[ImageTextBatch]]
"""(first step, end) -> the batches of these steps."""


def train(
    task: Task,
    engine: Engine,
    batches: Batches,
    config: LoopConfig,
    stage: Stage,
    facts: LogFacts | None = None,
    validation: Validation | None = None,
) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start, to the end.

    Args:
        task: Gives the losses.
        engine: Owns weights and optimizer.
        batches: The stream, from any step on.
        config: Durations.
        stage: Folder, process and budget.
        facts: What the log says besides what steps compute.
        validation: Scores that tell which state training ends with; None for the last one.

    Returns:
        Steps, samples and seconds of the whole training, samples that could not be used (each time, and by reason),
        updates left out as they were not numbers, the main process's peak memory, and which state was scored best.

    Raises:
        NonFiniteError: On every process, where a loss or gradient is not a number and the run is not to go on.
        UserError: A checkpoint could not be written, or does not fit.
        Left: On every process, once a checkpoint is complete, where training was asked to leave.
    """
    rules, note = stage.checkpoint, stage.checkpoint_note
    store = CheckpointStore(stage.checkpoints, rules, stage.process, stage.fingerprint, note, stage.guard)
    if validation is not None:
        validation.begin(store)
    bad = BadUpdates(config.bad_updates, stage.folder if stage.process.is_main else None)
    try:
        while True:
            try:
                return _train(task, engine, batches, config, stage, facts, store, bad, validation)
            except Rewind as rewind:
                store.finish()
                if store.latest() is None:  # the weights are no longer those of a beginning
                    raise UserError(
                        f"{store.place} no longer holds a whole checkpoint to go back to; start over with --fresh"
                    ) from rewind
    finally:
        stage.pulse.rest()
        store.leave()


def _train(
    task: Task,
    engine: Engine,
    batches: Batches,
    config: LoopConfig,
    stage: Stage,
    facts: LogFacts | None,
    store: CheckpointStore,
    bad: BadUpdates,
    validation: Validation | None,
) -> dict[str, Any]:
    """The loop itself, from the last checkpoint on."""
    stage.pulse.rest()
    start, before = _restore(store, task, engine, stage.process)
    bad.go_on(start, before["left_out"])
    step, skipped_here = start, 0
    clock = Clock(
        config.steps, stage.budget_seconds, config.checkpoint_seconds, before["seconds"], stage.process.device
    )
    noise = NoiseScale(config.noise_scale, config.global_batch, stage.process.world_size * engine.config.accumulation)
    noise.load(before.get("noise"))
    log = StepLog(stage, config, step, facts, before.get("log"), noise.values)
    means = Means()

    def skipped() -> int:
        return before["skipped"] + global_sum(skipped_here, stage.process.torch_device)

    engine.module.train()
    stream = iter(stage.between(batches(start, config.steps)))
    while True:
        if step > start:
            stage.pulse.step(step)
        tick = clock.tick(step, store.failed, stage.pulse.asked_to_leave())
        if tick.failed:
            store.finish(must=False)
        ends, scores = tick.progress >= 1, dict[str, float]()
        if validation is not None and step > start and validation.due(step, tick.progress):
            stage.pulse.rest()
            scores = validation.scores(step)
            log.amend(step, clock.seconds, scores)
        if (tick.save or ends or tick.leave or scores or store.wants(step)) and step > start:
            values = {
                "seconds": clock.seconds, "skipped": skipped(), "left_out": bad.left_out, "log": log.begun_line(),
                "noise": noise.state(),
            }  # fmt: skip
            store.begin(step, engine, task.tensors(), values, means.take(), scores)
        if ends or tick.leave:
            store.finish()
        if ends:
            break
        if tick.leave:
            raise Left(f"training left after step {step}, as it was asked to")
        begin = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - begin
        skipped_here += len(batch.skipped)
        # The rate at the end of the step: that at its beginning would be 0 at first.
        lr_scale = config.schedule.lr_scale(min(1.0, tick.progress + 1 / config.steps))
        try:
            if noise.due(step):
                engine.watch_parts()
            numbers, report = _step(task, engine, batch.to(stage.process.device), tick.progress, lr_scale)
        except NonFiniteError as error:
            bad.bad(step, error, can_rewind=store.has_any)
            task.drop_update()
            step += 1
            continue
        bad.good()
        step += 1
        if report.part_square is not None:
            noise.add(report.part_square, report.grad_norm**2)
        means.add(numbers)
        log.load.add(batch, waited, time.perf_counter() - begin)
        log.add(step, clock.seconds, tick.progress, numbers)
    log.finish(step, clock.seconds)
    return {
        "steps": step,
        "samples": step * config.global_batch,
        "seconds": round(clock.seconds, 1),
        "skipped": skipped(),
        "left_out": bad.left_out,
        "bad_samples": count_reasons(stage.folder / QUARANTINE),
        "peak_bytes": peak_bytes(stage.process.device),
        **({} if validation is None else {"best": validation.take_best(store, step, engine, task, stage.process)}),
    }


def _restore(store: CheckpointStore, task: Task, engine: Engine, process: Process) -> tuple[int, dict[str, Any]]:
    """Steps done, and what the loop has counted: seconds, skipped samples, updates left out, the begun line of log."""
    checkpoint = store.latest()
    if checkpoint is None:
        return 0, {"seconds": 0.0, "skipped": 0, "left_out": 0, "log": None}
    logger.info("going on from %s", checkpoint)
    tensors, values = checkpoint.restore(engine, process)
    task.drop_update()
    task.load(tensors)
    return checkpoint.step, values


def _step(
    task: Task, engine: Engine, batch: ImageTextBatch, progress: float, lr_scale: float
) -> tuple[dict[str, Tensor], StepReport]:
    """One update, and what the engine said at its end.

    Where gradients are accumulated, the batch is cut and the values are means over its parts.
    """
    task.before_update(progress)
    parts = []
    for losses in task.losses_of_parts(engine, _parts(batch, engine.config.accumulation), progress):
        report = engine.step(losses.total, lr_scale)
        parts.append(_values(losses, report))
    task.after_update(progress)
    means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
    return {**means, "grad_norm": torch.tensor(report.grad_norm)}, report


def _values(losses: Losses, report: StepReport) -> dict[str, Tensor]:
    """What is logged of a part; it stays on the device until a line is due: one transfer then, none in between."""
    named = {f"loss/{name}": value for name, value in losses.named.items()}
    values = {"loss": report.loss, "lr": report.lr, **named, **losses.scalars}
    return {name: torch.as_tensor(value).detach().float() for name, value in values.items()}


def _parts(batch: ImageTextBatch, count: int) -> list[ImageTextBatch]:
    if count == 1:
        return [batch]
    size = len(batch) // count
    return [batch.part(slice(start, start + size)) for start in range(0, size * count, size)]


class StepLog:
    """Means since the last multiple of `log_every` steps, to metrics.jsonl and the progress file.

    The main process writes, and what it writes of values is its own; how data come is told of all processes.

    Args:
        stage: Folder, process and tracker.
        config: Durations.
        step: Steps done before.
        facts: What is said besides what steps compute.
        begun: `begun_line` of before.
        more: Gives further values of the moment that a line is written at.
    """

    def __init__(
        self,
        stage: Stage,
        config: LoopConfig,
        step: int,
        facts: LogFacts | None = None,
        begun: Mapping[str, Any] | None = None,
        more: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.main = stage.process.is_main
        self.device = stage.process.torch_device
        self.devices = stage.process.world_size
        self.tracker = stage.tracker
        self.facts = facts or LogFacts(restarts=stage.tracker.restarts)
        self.config = config
        self.more = more
        self.load = LoadTally()
        self.fed = ""
        begun = begun or {"count": 0, "sums": {}}
        self.sums = {name: torch.tensor(float.fromhex(value)) for name, value in begun["sums"].items()}
        self.count: int = begun["count"]
        self.last: tuple[int, float] | None = None
        if self.main:
            stage.folder.mkdir(parents=True, exist_ok=True)
            self.metrics = MetricsLog(stage.folder / "metrics.jsonl", step)
            self.progress = ProgressFile(stage.folder / "progress.json", 1.0, "share")

    def begun_line(self) -> dict[str, Any]:
        """What is taken in for the next line, JSON-able: it goes on after a restart. Clocks begin anew."""
        sums = {name: float(value).hex() for name, value in self.sums.items()}  # exact, and JSON knows no infinity
        return {"count": self.count, "sums": sums}

    def add(self, step: int, seconds: float, progress: float, values: Mapping[str, Tensor]) -> None:
        """Take in one step; what its batch took is added to `load` before. Every process calls it for every step."""
        self.count += 1
        if not self.main:
            values = {}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value
        if step % self.config.log_every == 0:
            self._write(step, seconds)
        if self.main:
            self.progress.show(progress, f"loss {float(values['loss']):.3f}{self.fed}")

    def amend(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add to this step's line, which ends with it."""
        if self.count:
            self._write(step, seconds)
        if self.main:
            self.tracker.log(self.metrics.amend({"step": step, "seconds": round(seconds, 2), **values}))

    def finish(self, step: int, seconds: float) -> None:
        """Write what is left."""
        if self.count:
            self._write(step, seconds)
        if self.main:
            self.progress.show(1.0, f"{step:,} steps", now=True)

    def _write(self, step: int, seconds: float) -> None:
        load = self.load.over_processes(self.device).values()
        if self.main:
            self._write_line(step, seconds, load)
        self.last = (step, seconds)
        self.sums, self.count, self.load = {}, 0, LoadTally()

    def _write_line(self, step: int, seconds: float, load: Mapping[str, Any]) -> None:
        names = list(self.sums)
        means = (torch.stack([self.sums[name].cpu() for name in names]) / self.count).tolist()
        line: dict[str, Any] = {"step": step, "samples": step * self.config.global_batch, "seconds": round(seconds, 2)}
        self.fed = f", {load['data_wait']:.0%} waiting for data"
        if self.last is not None:
            rate = (step - self.last[0]) * self.config.global_batch / max(1e-9, seconds - self.last[1])
            line |= self.facts.speed(rate, self.devices)
            self.fed = f", {rate:.0f} samples/s{self.fed}"
        values = dict(zip(names, means, strict=True))
        line |= {**load, **memory(str(self.device)), **values, **self.more()}
        line |= self.facts.values(values.get("lr", 0.0))
        self.tracker.log(self.metrics.write(line))
