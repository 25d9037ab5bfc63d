"""Evaluation of a fine-tuned model on its task: scores, what they cost, and the file that the task's server takes.

B batch, A classes or answers.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import StepLoader
from pipeline.data.questions import questions_of
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer
from pipeline.evaluation.config import EvaluateConfig, Row, source_of
from pipeline.evaluation.counted import used_and_left_out
from pipeline.evaluation.source import Source
from pipeline.evaluation.unscored import note_unscored
from pipeline.exports import load_classification_model, method_of
from pipeline.measure.instances import INSTANCES, Instances, write_instances
from pipeline.measure.latency import Latency, alike, alone, candidates, packed_latency
from pipeline.measure.outcomes import Outcomes, digest_of, outcomes_file, write_outcomes
from pipeline.metrics.tally import TALLIES, Tally
from pipeline.metrics.tasks import Score, score_of
from pipeline.models.schedule import Intervention
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.gallery import check_finite
from pipeline.together import in_split_order, together
from pipeline.trim_settle import reached
from pipeline.trimming.cost import Units, units_of
from pipeline.trimming.smarttrim import Decision
from pipeline.trimming.target import Target
from pipeline.validation import CONSISTENCY

log = logging.getLogger(__name__)

PREDICTIONS = "predictions"
"""Folder in the stage's, for result files: STAGE-SPLIT.json or .jsonl."""


@dataclass
class Costs:
    """Multiply-accumulates of each instance.

    Attributes:
        macs: As decided.
        full: Of the full model.
        unpruned: Of one that prunes nothing.
    """

    macs: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    unpruned: list[float] = field(default_factory=list)

    def add(self, model: ClassificationModel, units: Units, macs_B: Tensor) -> None:
        """Takes instances."""
        self.macs += macs_B.tolist()
        self.full += model.full_macs(units).tolist()
        self.unpruned += model.unpruned_macs(units).tolist()

    def join(self, others: "Costs") -> None:
        """Takes those of further instances."""
        for each in dataclasses.fields(self):
            getattr(self, each.name).extend(getattr(others, each.name))

    def only(self, which: Sequence[bool]) -> "Costs":
        """Those of some of the instances."""
        lists = (getattr(self, each.name) for each in dataclasses.fields(self))
        return Costs(*(list(itertools.compress(values, which)) for values in lists))

    @property
    def share(self) -> float:
        """What was spent over what the full model would have."""
        return math.fsum(self.macs) / math.fsum(self.full)

    def row(self) -> Row:
        """Means, in 10^9."""
        means = {"gmacs": self.macs, "full_gmacs": self.full, "unpruned_gmacs": self.unpruned}
        return {name: math.fsum(values) / len(values) / 1e9 for name, values in means.items()}


@dataclass(frozen=True)
class Said:
    """What a model said on a split, the same on every rank.

    Attributes:
        tally: Its answers.
        costs: Of each instance, in the order of the split.
        instances: What was kept of them, and where their costs lie.
        digest: Tells these instances from those of other data.
        samples: Instances that were used.
        skipped: Those that could not be.
        whole: Whether all of the split was to be used.
        left_out: Samples that were left out when the split was written.
    """

    tally: Tally
    costs: Costs
    instances: Instances
    digest: str
    samples: int
    skipped: int
    whole: bool
    left_out: int

    def outcomes(self) -> tuple[list[Outcomes], str | None]:
        """What became of the instances, and which score is missing and why.

        A part of those that are judged together would be consistent more often.
        """
        found, lacking = self.tally.outcomes(), self.tally.lacking
        missing = self._missing()
        if missing is None or all(one.metric != CONSISTENCY for one in found):
            return found, lacking
        lacking = f"no consistency: {missing} may leave out others that are judged with these"
        return [one for one in found if one.metric != CONSISTENCY], lacking

    def _missing(self) -> str | None:
        if not self.whole:
            return "the limit"
        if self.skipped:
            return f"what could not be used ({self.skipped} of the split)"
        return f"what is not in the shards ({self.left_out} by the account in index.json)" if self.left_out else None


@dataclass(frozen=True)
class Answered:
    """A batch without its pictures, and what was said to it.

    Attributes:
        batch: The batch.
        said: Number of the class that each instance was given.
        costs: Of each.
    """

    batch: ImageTextBatch
    said: list[int]
    costs: Costs


def said_on(model: ClassificationModel, source: Source, loader: StepLoader, process: Process) -> Said:
    """Has a model answer everything that a split asks; all ranks call it together.

    Args:
        model: In evaluation mode, on the process's device.
        source: The split as the model takes it.
        loader: This rank's part of it.
        process: This rank.

    Raises:
        UserError: Nothing could be used, results could not be told apart, or a score is not finite.
    """
    if model.classes.text == "questions":
        questions_of(ShardFolder(source.split, source.loader), process).refuse_alike(source.split)
    answered, instances = answered_on(model, source, ([batch] for batch in loader), process)
    tally, costs = TALLIES[model.classes.task](), Costs()
    for one in answered:
        tally.add(one.batch, one.said, model.classes.names)
        costs.join(one.costs)
    seen, bad = used_and_left_out(loader, process)
    asked = (zip(one.batch.keys, one.batch.ids, one.batch.texts, strict=True) for one in answered)
    digest = digest_of(words for batch in asked for words in batch)
    return Said(tally, costs, instances, digest, seen, bad, loader.whole, loader.left_out)


def answered_on(
    model: ClassificationModel, source: Source, turns: Iterable[Iterable[ImageTextBatch]], process: Process
) -> tuple[list[Answered], Instances]:
    """What a model says to all batches of all ranks, in the order of the split; all ranks call it together.

    Args:
        model: In evaluation mode, on the process's device.
        source: The split as the model takes it.
        turns: What is asked of each of this rank's batches of the split, in one batch or in several.
        process: This rank.

    Raises:
        UserError: Nothing could be used, or a score is not finite.
    """
    parts, seen_by = zip(
        *together(process, lambda: _own_part(model, source, turns, process), source.split), strict=True
    )
    answered = [one for own in in_split_order(parts) for one in own]
    if not answered:
        raise UserError(f"{source.split}: no {model.classes.text} could be used; look at it with `trimline verify`")
    instances = Instances()
    for each in seen_by:
        instances.join(each)
    return answered, instances


def _own_part(
    model: ClassificationModel, source: Source, turns: Iterable[Iterable[ImageTextBatch]], process: Process
) -> tuple[list[list[Answered]], Instances]:
    part, instances = [], Instances()
    for batches in turns:
        part.append(own := list[Answered]())
        for batch, scores_BA, macs_B, decisions in judged(model, batches, source.normalise, process.torch_device):
            costs, said = Costs(), scores_BA.argmax(1).tolist()
            costs.add(model, units_of(model.backbone, batch.token_mask), macs_B)
            instances.join(Instances.of(model, batch, decisions, said, costs.macs))
            bare = dataclasses.replace(batch.to("cpu"), pixels=torch.empty(len(batch), 0))
            own.append(Answered(bare, said, costs))
    return part, instances


def classified(
    config: EvaluateConfig, name: str, folder: Path, split: str, inputs: Inputs, tokenizer: Tokenizer, stage: Stage
) -> list[Row]:
    """A row for each score of a model on a split; see `evaluate`.

    Args:
        config: Batch size, how time is taken.
        name: Of the stage that trained the model.
        folder: Its export.
        split: Folder of the split inside the data.
        inputs: Data, loader, normalisation.
        tokenizer: Of the texts.
        stage: Where the result file goes, and on which device.

    Raises:
        UserError: The export or the split cannot be used, or results could not be told apart.
    """
    model, described = load_classification_model(folder)
    model, classes = model.to(stage.process.torch_device), model.classes
    inputs = inputs.of_export(described)
    target, source = Target.parse(described["target"]), source_of(inputs, split, tokenizer, stage)
    said = said_on(model, source, source.batches(classes.text, config.batch_size, stage.process), stage.process)
    costs = said.costs
    outcomes, lacking = said.outcomes()
    if stage.process.is_main:
        _write_results(said, lacking, name, split, stage)
    row = {
        **row_of(name, described, split, costs),
        "samples": said.samples,
        "skipped": said.skipped,
        **reached(target, costs.macs, costs.full, partial(_latency, config, model, costs.macs, source)),
    }
    if stage.process.is_main:
        path = stage.folder / INSTANCES / f"{name}-{split.replace('/', '-')}.json"
        write_instances(path, row, said.instances, costs.macs)
        if outcomes:
            write_outcomes(outcomes_file(stage.folder, name, split), said.digest, outcomes)
    return rows_of(row, [score_of(one) for one in outcomes], stage)


def _write_results(said: Said, lacking: str | None, name: str, split: str, stage: Stage) -> None:
    """The server's file, where there is one; what is missing in scores or in the file is told."""
    tally = said.tally
    if tally.ending and not tally.lacking:
        tally.write(predictions_file(stage, name, split, tally.ending))
        warn_incomplete(name, split, said.skipped, said.left_out)
    if lacking:
        log.warning("%s on %s: %s", name, split, lacking)
        note_unscored(stage.folder, name, split, lacking)


def warn_incomplete(name: str, split: str, skipped: int, left_out: int) -> None:
    """Tells what a result file lacks, for the task's server wants all.

    Args:
        name: Of the stage that trained the model.
        split: That was evaluated.
        skipped: Instances that could not be used.
        left_out: Samples that were left out when the split was written.
    """
    for count, why in ((skipped, "that could not be used"), (left_out, "that are in no shard")):
        if count:
            log.warning("%s on %s: %d %s are not in the result file", name, split, count, why)


def predictions_file(stage: Stage, name: str, split: str, ending: str) -> Path:
    """Where a model's results go, for its task's server."""
    (stage.folder / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    return stage.folder / PREDICTIONS / f"{name}-{split.replace('/', '-')}{ending}"


def row_of(name: str, described: dict[str, Any], split: str, costs: Costs) -> Row:
    """What the rows of a model on a split have in common: what it is, and what it costs."""
    target = Target.parse(described["target"])
    return {
        "stage": name,
        "method": method_of(described),
        "target": target.amount if target.unit == "x" else str(target),
        "task": described["kind"],
        "split": split,
        **costs.row(),
        "training_gmacs": _training_gmacs(described.get("training")),
    }


def rows_of(row: Row, scores: Sequence[Score], stage: Stage) -> list[Row]:
    """A row for each score; where there is none, the folder of `stage` says why."""
    if not scores and stage.process.is_main:
        why = f"nobody says what is right of it; what the model says is in {PREDICTIONS}"
        log.info("%s on %s has no scores: %s", row["stage"], row["split"], why)
        note_unscored(stage.folder, row["stage"], row["split"], why)
    return [{**row, "metric": one.metric, "value": one.value, "low": one.low, "high": one.high} for one in scores]


def _training_gmacs(training: dict[str, Any] | None) -> float | None:
    """Of fine-tuning, with that of the full model where one was needed; None where an export does not say."""
    if training is None or training["gmacs_of_full"] is None:
        return None
    return float(training["gmacs"]) + float(training["gmacs_of_full"])


def _latency(config: EvaluateConfig, model: ClassificationModel, macs: list[float], source: Source) -> Latency:
    """Time of instances whose costs are spread as those of the whole split; each rank takes its own."""
    device, count = next(model.parameters()).device, candidates(config.latency)
    loader = source.batches(model.classes.text, count, Process(), count, spread=True)
    batch, _, macs_B, _ = next(judged(model, loader, source.normalise, device))
    rows = alike(macs, macs_B.tolist(), config.latency.instances)
    return packed_latency(model, alone(batch, rows, source.normalise, device), config.latency)


@torch.no_grad()
def judged(
    model: ClassificationModel,
    batches: Iterable[ImageTextBatch],
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Iterator[tuple[ImageTextBatch, Tensor, Tensor, Mapping[str, Decision]]]:
    """Batches with their scores, (B,) multiply-accumulates and decisions; what is trimmed is not computed.

    Scores are (B, A), of captions (M, V) of their M words (`Classes.rows`).

    Raises:
        UserError: A score is not finite: whatever is largest among such says nothing.
    """
    for batch in batches:
        if not len(batch):
            continue
        batch = batch.to(device)
        trimming = model.trimming(batch.token_ids, batch.token_mask)
        methods: list[Intervention] = [] if trimming is None else [trimming]
        scores_BA = model.classify(normalise(batch.pixels), batch.token_ids, batch.token_mask, methods)
        names = partial(_name_of, batch.keys, model.classes.rows(batch))
        check_finite(scores_BA.isfinite().all(1), names, f"scores of {model.classes.text}")
        decisions: Mapping[str, Decision] = {} if trimming is None else trimming.decisions
        yield batch, scores_BA, model.macs(decisions, units_of(model.backbone, batch.token_mask)), decisions


def _name_of(keys: Sequence[str], rows: Tensor, at: int) -> str:
    """The key of the instance that a row of scores is of."""
    return keys[int(rows[at])]
