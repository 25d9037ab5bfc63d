"""The one training loop: batch, losses, step, log, checkpoint. It knows no objective and no launcher.

The way of one batch, as `_Loop.run` has it:

    _tick      all processes agree on how far training is, and whether it saves, leaves or ends here
    _scores    of the weights so far on held-out data, where they are due
    _save      the state so far, where that is due; it is written while the next steps are made
    next       this process's part of the global batch, from the loader
    _update    `pipeline.update`: the task's losses, part by part, through the engine, which changes the weights
    log        `pipeline.step_log`: values are taken in, and each `log_every` steps written as a line
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from data_prep.errors import UserError
from pipeline.bad_updates import BadUpdates, Rewind
from pipeline.checkpoint import CheckpointStore
from pipeline.checkpoint_rules import Means
from pipeline.clock import Clock, Tick
from pipeline.data.batch import ImageTextBatch
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.quarantine import count_reasons
from pipeline.engine import Engine, NonFiniteError
from pipeline.log_facts import LogFacts, peak_bytes
from pipeline.loop_config import LoopConfig
from pipeline.measure.noise_scale import NoiseScale
from pipeline.objectives.gather import global_sum
from pipeline.process import Process
from pipeline.pulse import Left
from pipeline.stage import Batches, Stage
from pipeline.step_log import StepLog
from pipeline.tasks.task import Task
from pipeline.update import update
from pipeline.validation import Validation

logger = logging.getLogger(__name__)


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
                return _Loop(task, engine, config, stage, facts, validation, store, bad).run(batches)
            except Rewind as rewind:
                stage.pulse.rest()
                store.finish(must=False)  # one that fails is not needed where there is another to go back to
                if store.latest() is None:  # the weights are no longer those of a beginning
                    raise UserError(
                        f"{store.place} holds no whole checkpoint to go back to; start over with --fresh"
                    ) from rewind
    finally:
        stage.pulse.end()
        store.leave()


class _Loop:
    """One go of the loop, from the last checkpoint on; arguments as of `train`."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        config: LoopConfig,
        stage: Stage,
        facts: LogFacts | None,
        validation: Validation | None,
        store: CheckpointStore,
        bad: BadUpdates,
    ) -> None:
        self.task, self.engine, self.config, self.stage = task, engine, config, stage
        self.validation, self.store, self.bad = validation, store, bad
        self.start, counted = _restore(store, task, engine, stage.process)
        bad.go_on(self.start, counted["left_out"])
        self.step = self.start  # updates done, those included that were left out
        self.skipped_before, self.skipped_here = counted["skipped"], 0  # samples: of all processes; of this one since
        spent, device = counted["seconds"], stage.process.device
        self.clock = Clock(config.steps, stage.budget_seconds, config.checkpoint_seconds, spent, device)
        parts = stage.process.world_size * engine.config.accumulation  # of a global batch
        self.noise = NoiseScale(config.noise_scale, config.global_batch, parts)
        self.noise.load(counted.get("noise"))
        self.log = StepLog(stage, config, self.step, facts, counted.get("log"), self.noise.values)
        self.means = Means()  # since the last checkpoint, which says them of itself

    def run(self, batches: Batches) -> dict[str, Any]:
        """Step by step to the end; returns what `train` does."""
        self.engine.module.train()
        stream = iter(self.stage.between(batches(self.start, self.config.steps)))
        while True:
            tick = self._tick()
            self._save(tick, self._scores(tick))
            if tick.ends:
                break
            if tick.leave:
                raise Left(f"training left after step {self.step}, as it was asked to")
            began = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - began
            self.skipped_here += len(batch.skipped)
            values = self._update(batch, tick.progress)
            self.step += 1
            if values is None:  # left out: a step like others, but no mean takes it in
                continue
            self.means.add(values)
            self.log.load.add(batch, waited, time.perf_counter() - began)
            self.log.add(self.step, self.clock.seconds, tick.progress, values)
        self.log.finish(self.step, self.clock.seconds)
        return self._result()

    def _tick(self) -> Tick:
        """Tells that a step is done, and agrees with all processes on what comes before the next one."""
        if self.step > self.start:
            self.stage.pulse.step(self.step)
        tick = self.clock.tick(self.step, self.store.failed, self.stage.pulse.asked_to_leave())
        if tick.failed:
            self._wait_for_save()
        return tick

    def _scores(self, tick: Tick) -> dict[str, float]:
        """Of the weights as they are, on held-out data; empty where they are not due."""
        due = self.validation is not None and self.step > self.start and self.validation.due(self.step, tick.progress)
        if self.validation is None or not due:
            return {}
        self.stage.pulse.rest()
        scores = self.validation.scores(self.step)
        self.log.amend(self.step, self.clock.seconds, scores)
        return scores

    def _save(self, tick: Tick, scores: Mapping[str, float]) -> None:
        """Begins a checkpoint where one is due, once the one before is written; the last one is waited for."""
        due = tick.save or tick.ends or tick.leave or scores or self.store.wants(self.step)
        if due and self.step > self.start:  # a checkpoint that training has just gone on from is there already
            self._wait_for_save()
            values = {
                "seconds": self.clock.seconds, "skipped": self._skipped(), "left_out": self.bad.left_out,
                "log": self.log.begun_line(), "noise": self.noise.state(),
            }  # fmt: skip
            self.store.begin(self.step, self.engine, self.task.tensors(), values, self.means.take(), scores)
        if tick.ends or tick.leave:
            self._wait_for_save(last=True)

    def _wait_for_save(self, *, last: bool = False) -> None:
        """Returns when no checkpoint is being written; that is no step, and may take as long as an upload takes."""
        self.stage.pulse.rest()
        self.store.finish(must=last)
        if not last:
            self.stage.pulse.step(self.step)

    def _update(self, batch: ImageTextBatch, progress: float) -> dict[str, Tensor] | None:
        """Makes one of a batch; returns what is logged of it, or None where it is left out as it was not a number."""
        # The rate at the end of the step: that at its beginning would be 0 at first.
        lr_scale = self.config.schedule.lr_scale(min(1.0, progress + 1 / self.config.steps))
        try:
            if self.noise.due(self.step):
                self.engine.watch_parts()
            values, report = update(self.task, self.engine, batch.to(self.stage.process.device), progress, lr_scale)
        except NonFiniteError as error:
            self.bad.bad(self.step, error, can_rewind=self.store.has_any)
            self.task.drop_update()
            return None
        self.bad.good()
        if report.part_square is not None:
            self.noise.add(report.part_square, report.grad_norm**2)
        return values

    def _skipped(self) -> int:
        """Of all processes, in the whole training."""
        return self.skipped_before + global_sum(self.skipped_here, self.stage.process.torch_device)

    def _result(self) -> dict[str, Any]:
        process, validation = self.stage.process, self.validation
        result: dict[str, Any] = {
            "steps": self.step,
            "samples": self.step * self.config.global_batch,
            "seconds": round(self.clock.seconds, 1),
            "skipped": self._skipped(),
            "left_out": self.bad.left_out,
            "bad_samples": count_reasons(self.stage.folder / QUARANTINE),
            "peak_bytes": peak_bytes(process.device),
        }
        if validation is not None:
            result["best"] = validation.take_best(self.store, self.step, self.engine, self.task, process)
        return result


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
