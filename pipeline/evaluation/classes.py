"""Evaluation of a fine-tuned model on its task: scores, what they cost, and the file that the task's server takes.

B batch, A classes or answers.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer
from pipeline.evaluation.config import EvaluateConfig, Row, loader_of
from pipeline.exports import load_classification_model, method_of
from pipeline.measure.latency import Latency, alike, alone, candidates, packed_latency
from pipeline.metrics.tally import TALLIES, Tally
from pipeline.models.schedule import Intervention
from pipeline.setup import Inputs
from pipeline.tasks.classification import ClassificationModel
from pipeline.train import Stage
from pipeline.trim_settle import reached
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target

log = logging.getLogger(__name__)

PREDICTIONS = "predictions"
"""Folder in the stage's, for result files: STAGE-SPLIT.json or .jsonl."""


@dataclass
class _Costs:
    """Multiply-accumulates of each instance: as decided, of the full model, and of one that prunes nothing."""

    macs: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    unpruned: list[float] = field(default_factory=list)

    def add(self, model: ClassificationModel, batch: ImageTextBatch, macs_B: Tensor) -> None:
        units = units_of(model.backbone, batch.token_mask)
        self.macs += macs_B.tolist()
        self.full += model.full_macs(units).tolist()
        self.unpruned += model.unpruned_macs(units).tolist()

    def row(self) -> Row:
        means = {"gmacs": self.macs, "full_gmacs": self.full, "unpruned_gmacs": self.unpruned}
        return {name: sum(values) / len(values) / 1e9 for name, values in means.items()}


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
    target, tally, costs = Target.parse(described["target"]), TALLIES[classes.task](), _Costs()
    loader = loader_of(inputs, split, classes.text, config.batch_size, tokenizer, None, stage)
    for batch, scores_BA, macs_B in judged(model, loader, inputs, stage.process.torch_device):
        tally.add(batch, scores_BA.argmax(1).tolist(), classes.names)
        costs.add(model, batch, macs_B)
    _write(tally, stage.folder / PREDICTIONS / f"{name}-{split.replace('/', '-')}{tally.ending}")
    row = {
        "stage": name,
        "method": method_of(described),
        "target": target.amount if target.unit == "x" else str(target),
        "task": classes.task,
        "split": split,
        **costs.row(),
        "training_gmacs": _training_gmacs(described.get("training")),
        "samples": loader.seen,
        "skipped": loader.bad,
        **reached(
            target, costs.macs, costs.full, partial(_latency, config, model, costs.macs, split, inputs, tokenizer)
        ),
    }
    scores = tally.scores()
    if not scores:
        log.info("%s: nobody says what is right of %s; what the model says is in %s", name, split, PREDICTIONS)
    return [{**row, "metric": one.metric, "value": one.value, "low": one.low, "high": one.high} for one in scores]


def _write(tally: Tally, path: Path) -> None:
    if tally.ending:
        path.parent.mkdir(parents=True, exist_ok=True)
        tally.write(path)


def _training_gmacs(training: dict[str, Any] | None) -> float | None:
    """Of fine-tuning, with that of the full model where one was needed; None where an export does not say."""
    if training is None or training["gmacs_of_full"] is None:
        return None
    return float(training["gmacs"]) + float(training["gmacs_of_full"])


def _latency(
    config: EvaluateConfig,
    model: ClassificationModel,
    macs: list[float],
    split: str,
    inputs: Inputs,
    tokenizer: Tokenizer,
) -> Latency:
    """Time of instances whose costs are spread as those of the whole split."""
    device, count = next(model.parameters()).device, candidates(config.latency)
    loader = loader_of(inputs, split, model.classes.text, count, tokenizer, count, spread=True)
    batch, _, macs_B = next(judged(model, loader, inputs, device))
    rows = alike(macs, macs_B.tolist(), config.latency.instances)
    return packed_latency(model, alone(batch, rows, inputs.normalise, device), config.latency)


@torch.no_grad()
def judged(
    model: ClassificationModel, batches: Iterable[ImageTextBatch], inputs: Inputs, device: torch.device
) -> Iterator[tuple[ImageTextBatch, Tensor, Tensor]]:
    """Batches with their (B, A) scores and (B,) multiply-accumulates; what is trimmed is not computed.

    Raises:
        UserError: A score is not finite: whatever is largest among such says nothing.
    """
    for batch in batches:
        if not len(batch):
            continue
        batch = batch.to(device)
        trimming = model.trimming(batch.token_ids, batch.token_mask)
        methods: list[Intervention] = [] if trimming is None else [trimming]
        scores_BA = model.classify(inputs.normalise(batch.pixels), batch.token_ids, batch.token_mask, methods)
        if not (finite_B := scores_BA.isfinite().all(1)).all():
            bad = batch.keys[int(finite_B.logical_not().nonzero()[0])]
            raise UserError(f"the model's scores of {bad} are not finite numbers; fine-tune it again")
        decisions = {} if trimming is None else trimming.decisions
        yield batch, scores_BA, model.macs(decisions, units_of(model.backbone, batch.token_mask))
