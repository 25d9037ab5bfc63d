"""Fine-tuning's scores on held-out data: of the model as it would be exported, by the code that evaluates exports."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.classes import said_on
from pipeline.evaluation.source import Source
from pipeline.exports import build_classification_model
from pipeline.metrics.tally import check_metric
from pipeline.metrics.tasks import Score
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.tasks.classes import Classes
from pipeline.tasks.classification import ClassificationModel, ClassificationTask
from pipeline.trim_config import TrimConfig
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import Trimmers
from pipeline.validation import CONSISTENCY, Scored, Validation

Weights = Mapping[str, Tensor]


def exported_model(
    described: dict[str, Any], classes: Classes, weights: Weights, shift: float, device: torch.device
) -> ClassificationModel:
    """The model of an export, with training's shift in its trimmers, in evaluation mode.

    Args:
        described: Its config.json.
        classes: Of its head.
        weights: As training has them.
        shift: Added to all scores.
        device: Where it goes.
    """
    plain = build_classification_model(described, classes)
    plain.load_state_dict(weights)
    plain.to(device).eval()
    if isinstance(plain.trimmers, Trimmers):
        plain.trimmers.shift(shift)  # of what is scored; what is not has no shift
    return plain


def validation_of(
    config: TrimConfig,
    target: Target,
    task: ClassificationTask,
    inputs: Inputs,
    max_tokens: int,
    process: Process,
    exported: Callable[[], ClassificationModel],
) -> Validation | None:
    """What scores a fine-tuning; None where it is not to be scored.

    Args:
        config: Of the stage.
        target: Of the stage.
        task: That is trained.
        inputs: Data and loader, as training reads it.
        max_tokens: Length of texts in evaluation.
        process: This rank.
        exported: Makes the model as it would be exported now; every rank calls it.

    Raises:
        UserError: The metric is none of the task's.
    """
    if not config.validation.every_steps:
        return None
    wanted = config.validation
    check_metric(config.task, wanted.metric)
    loader = replace(inputs.loader, max_tokens=max_tokens)
    source = Source(split=inputs.data / wanted.split, loader=loader, tokenizer=inputs.load_tokenizer())

    def score() -> Scored:
        # Making a model draws its weights, and training's own draws must not depend on how often it is scored.
        with torch.random.fork_rng([] if process.device == "cpu" else [process.torch_device]):
            model = exported()
            batches = source.batches(
                task.classes.text, wanted.batch_size, process, wanted.samples, spread=wanted.samples is not None
            )
            said = said_on(model, source, batches, process)
            cost = math.fsum(said.costs.macs) / math.fsum(said.costs.full)
            return Scored(values_of(said.tally.scores(), sampled=wanted.samples is not None), cost)

    falls = config.method != "ftkd" and not target.is_full
    # What no trimmer learns costs the same from then on, however near to the target that is.
    share = 1 / task.target if config.learns and not target.is_full else None
    return Validation(wanted, config.smarttrim.curriculum.share if falls else 0.0, score, share)


def values_of(scores: Iterable[Score], *, sampled: bool) -> dict[str, float]:
    """By metric; of a sample without what only whole groups have."""
    return {one.metric: one.value for one in scores if not (sampled and one.metric == CONSISTENCY)}
