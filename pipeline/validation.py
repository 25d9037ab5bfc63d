"""Scores on held-out data while training goes on, and the return to the checkpoint that had the best one.

A checkpoint is made with every score and holds it, so a run that was stopped goes on with the same scores, and the best
weights are those of a checkpoint: there is no second copy of them to fall out of step.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
COST = f"{PREFIX}cost"
AT_TARGET = f"{PREFIX}at_target"
"""The metric of a state whose cost is near enough to the target; others have none."""

CONSISTENCY = "consistency"
"""The score of whole groups; a sample of single statements tears them apart."""

NEAR = 0.05
"""Part of the wanted cost by which a state that competes may miss it: a dearer one would win by what it costs."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """When fine-tuning is scored on held-out data; what it exports then is the best that was scored.

    Attributes:
        split: Split folder; none that is trained on, or that results are reported on.
        every_steps: Updates between two scores; the end is scored too. 0 for none: the last weights are exported. With
            trimming only once the curriculum has reached its target: a model that still keeps everything would win.
        metric: By which the best is told, the highest; the first of equal ones. Where trimmers learn, only states
            compete whose mean cost is within 5% of the target; where none is, the last one is exported. Of captions
            CIDEr or another of pycocoevalcap's, which needs Java; or word_accuracy, the share of words that are told
            rightly behind the right ones, of each picture's first caption. Of retrieval mean_recall, R@10, or a recall
            of one way such as TR R@1; matching re-ranks 128 candidates.
        samples: How many statements, questions or pictures, from all over the split; None for all.
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
            if self.metric == CONSISTENCY:
                raise UserError(
                    f"trim.validation.metric={self.metric} wants whole groups of statements, which "
                    f"trim.validation.samples={self.samples} tears apart; leave samples out, or take accuracy"
                )


class Scored(NamedTuple):
    """What was found on held-out data.

    Attributes:
        values: In percent, by metric.
        cost: Mean multiply-accumulates over the full model's.
    """

    values: Mapping[str, float]
    cost: float = 1.0


class Validation:
    """What the training loop asks for scores.

    Args:
        config: When, and by what the best is told.
        since: Share of training before which nothing is scored.
        score: All scores of the weights as they are; every rank calls it.
        wanted: Cost over the full model's that a state must come near to compete; None where all compete.
    """

    def __init__(
        self, config: ValidationConfig, since: float, score: Callable[[], Scored], wanted: float | None = None
    ) -> None:
        self.config = config
        self._since = since
        self._score = score
        self._wanted = wanted
        self._best: tuple[float, int] | None = None

    @property
    def metric(self) -> str:
        """The name of what the best is told by, in metrics.jsonl and in checkpoints."""
        return self._scored if self._wanted is None else AT_TARGET

    @property
    def _scored(self) -> str:
        return PREFIX + self.config.metric

    def _competes(self, cost: float) -> bool:
        return self._wanted is None or abs(cost - self._wanted) <= NEAR * self._wanted

    def begin(self, store: CheckpointStore) -> None:
        """Has the best checkpoint kept, and takes in what there are already."""
        store.chosen_by = self.metric
        found = best_of(store, self.metric)
        self._best = None if found is None else (found[1], found[0].step)

    def due(self, step: int, progress: float) -> bool:
        """Whether the weights after a step are to be scored; the last ones are."""
        return progress >= 1 or (step % self.config.every_steps == 0 and progress >= self._since)

    def scores(self, step: int) -> dict[str, float]:
        """Of the weights after a step, with their cost, and the best so far where there is one.

        Raises:
            UserError: The wanted metric is not among them, or a score is not finite.
        """
        values, cost = self._score()
        found = {PREFIX + name: value for name, value in values.items()}
        if self._scored not in found:
            there = ", ".join(name.removeprefix(PREFIX) for name in found) or "none: nobody says what is right there"
            raise UserError(
                f"trim.validation.metric={self.config.metric} is no score of {self.config.split!r}; it has {there}"
            )
        value = found[self._scored]
        found[COST] = cost
        if self._competes(cost):
            found[self.metric] = value
            if self._best is None or value > self._best[0]:
                self._best = value, step
        self._tell(value, cost, step)
        return found if self._best is None else {**found, BEST: self._best[0], BEST_STEP: float(self._best[1])}

    def _tell(self, value: float, cost: float, step: int) -> None:
        wanted = "" if self._wanted is None else f" (wanted: {self._wanted:.4g})"
        away = "" if self._competes(cost) else ", too far off to compete"
        best = "none yet" if self._best is None else f"{self._best[0]:.2f} after step {self._best[1]}"
        words = "%s %.2f after step %d at %.4g of the full cost%s%s; best: %s"
        log.info(words, self._scored, value, step, cost, wanted, away, best)

    def take_best(
        self, store: CheckpointStore, step: int, engine: Engine, task: Task, process: Process
    ) -> dict[str, float | int | str]:
        """Brings back the state that was scored best, the last one where none competed; what is exported is that.

        Args:
            store: Of the finished training.
            step: Its last one.
            engine: Takes the weights.
            task: Takes its own state.
            process: This rank.

        Returns:
            ``metric``, ``value`` and ``step`` of the best; ``at_target``, where costs count: whether it competed.

        Raises:
            UserError: No checkpoint with a score could be read.
        """
        best = best_of(store, self.metric)
        found = best_of(store, self._scored, step) if best is None and self._wanted is not None else best
        if found is None:
            raise UserError(f"{store.place} holds no whole checkpoint with {self._scored}; start over with --fresh")
        checkpoint, value = found
        if checkpoint.step != step:
            task.load(checkpoint.restore(engine, process)[0])
        if process.is_main and best is None:
            words = "no scored state came within %.0f%% of the wanted cost: the last one is exported, with %s %.2f"
            log.warning(words, 100 * NEAR, self._scored, value)
        elif process.is_main:
            log.info("the best weights are those after step %d, with %s %.2f", checkpoint.step, self._scored, value)
        costs = {} if self._wanted is None else {"at_target": best is not None}
        return {"metric": self.config.metric, "value": value, "step": checkpoint.step, **costs}


def best_of(store: CheckpointStore, metric: str, step: int | None = None) -> tuple[Checkpoint, float] | None:
    """The complete checkpoint with the highest value of a metric, and the value; None where none has it.

    Every rank calls it; the main rank looks for all.

    Args:
        store: In which it lies.
        metric: Its name in checkpoints.
        step: Of the only checkpoint that is looked at; None for all.
    """

    def look() -> tuple[str, int, float] | None:
        there = (one for one in store.place.saved() if step is None or one.step == step)
        whole = (one for one in there if store.place.is_whole(one.name))
        found = highest_of((one for one in whole if one.fingerprint == store.fingerprint), metric)
        return None if found is None else (found.name, found.step, found.metrics[metric])

    found = together(store.process, lambda: look() if store.process.is_main else None, str(store.place))[0]
    return None if found is None else (Checkpoint(place=store.place, name=found[0], step=found[1]), found[2])
