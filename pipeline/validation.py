"""Scores on held-out data while training goes on, and the return to the checkpoint that had the best one.

A checkpoint is made with every score and holds it, so a run that was stopped goes on with the same scores, and the best
weights are those of a checkpoint: there is no second copy of them to fall out of step.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_prep.errors import UserError
from pipeline.checkpoint import Checkpoint, CheckpointStore
from pipeline.checkpoint_rules import highest_of
from pipeline.engine import Engine
from pipeline.limits import at_least
from pipeline.process import Process
from pipeline.tasks.task import Task
from pipeline.together import together

log = logging.getLogger(__name__)

PREFIX = "validation/"
"""Of scores in metrics.jsonl."""
BEST, BEST_STEP = f"{PREFIX}best", f"{PREFIX}best_step"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """When fine-tuning is scored on held-out data; what it exports then is the best that was scored.

    Attributes:
        split: Split folder; none that is trained on, or that results are reported on.
        every_steps: Updates between two scores; the end is scored too. 0 for none: the last weights are exported. With
            trimming only once the curriculum has reached its target: a model that still keeps everything would win.
        metric: By which the best is told, the highest; the first of equal ones.
        samples: How many statements or questions, from all over the split; None for all.
        batch_size: Instances at once; scores do not depend on it.
    """

    split: str = "val"
    every_steps: int = 0
    metric: str = "accuracy"
    samples: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least(self, "trim.validation", 0, "every_steps")
        at_least(self, "trim.validation", 1, "batch_size")
        if self.samples is not None:
            at_least(self, "trim.validation", 1, "samples")


class Validation:
    """What the training loop asks for scores.

    Args:
        config: When, and by what the best is told.
        since: Share of training before which nothing is scored.
        score: All scores of the weights as they are, in percent, by metric; every rank calls it.
    """

    def __init__(self, config: ValidationConfig, since: float, score: Callable[[], Mapping[str, float]]) -> None:
        self.config = config
        self._since = since
        self._score = score
        self._best: tuple[float, int] | None = None

    @property
    def metric(self) -> str:
        """The name of what the best is told by, in metrics.jsonl and in checkpoints."""
        return PREFIX + self.config.metric

    def begin(self, store: CheckpointStore) -> None:
        """Has the best checkpoint kept, and takes in what there are already."""
        store.chosen_by = self.metric
        found = best_of(store, self.metric)
        self._best = None if found is None else (found[1], found[0].step)

    def due(self, step: int, progress: float) -> bool:
        """Whether the weights after a step are to be scored; the last ones are."""
        return progress >= 1 or (step % self.config.every_steps == 0 and progress >= self._since)

    def scores(self, step: int) -> dict[str, float]:
        """Of the weights after a step, with the best so far.

        Raises:
            UserError: The wanted metric is not among them, or a score is not finite.
        """
        found = {PREFIX + name: value for name, value in self._score().items()}
        if self.metric not in found:
            there = ", ".join(name.removeprefix(PREFIX) for name in found) or "none: nobody says what is right there"
            raise UserError(
                f"trim.validation.metric={self.config.metric} is no score of {self.config.split!r}; it has {there}"
            )
        value = found[self.metric]
        if self._best is None or value > self._best[0]:
            self._best = value, step
        log.info("%s %.2f after step %d; best: %.2f after step %d", self.metric, value, step, *self._best)
        return {**found, BEST: self._best[0], BEST_STEP: float(self._best[1])}

    def take_best(
        self, store: CheckpointStore, step: int, engine: Engine, task: Task, process: Process
    ) -> dict[str, float | int | str]:
        """Brings back the state that was scored best; what is exported then is that.

        Args:
            store: Of the finished training.
            step: Its last one.
            engine: Takes the weights.
            task: Takes its own state.
            process: This rank.

        Returns:
            ``metric``, ``value`` and ``step`` of the best.

        Raises:
            UserError: No checkpoint with a score could be read.
        """
        found = best_of(store, self.metric)
        if found is None:
            raise UserError(f"{store.place} holds no whole checkpoint with {self.metric}; start over with --fresh")
        checkpoint, value = found
        if checkpoint.step != step:
            task.load(checkpoint.restore(engine, process)[0])
        if process.is_main:
            log.info("the best weights are those after step %d, with %s %.2f", checkpoint.step, self.metric, value)
        return {"metric": self.config.metric, "value": value, "step": checkpoint.step}


def best_of(store: CheckpointStore, metric: str) -> tuple[Checkpoint, float] | None:
    """The complete checkpoint with the highest value of a metric, and the value; None where none has it.

    Every rank calls it; the main rank looks for all.
    """

    def look() -> tuple[str, int, float] | None:
        whole = (one for one in store.place.saved() if store.place.is_whole(one.name))
        found = highest_of((one for one in whole if one.fingerprint == store.fingerprint), metric)
        return None if found is None else (found.name, found.step, found.metrics[metric])

    found = together(store.process, lambda: look() if store.process.is_main else None, str(store.place))[0]
    return None if found is None else (Checkpoint(place=store.place, name=found[0], step=found[1]), found[2])
