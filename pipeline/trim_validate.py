"""Fine-tuning's scores on held-out data: of the model as it would be exported, by the code that evaluates exports."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.captioner import Captioner
from pipeline.data.first_samples import first_samples
from pipeline.data.loader import LoaderConfig, StepLoader
from pipeline.data.questions import questions_of
from pipeline.data.sample import EveryImage, TextKind
from pipeline.data.shards import ShardFolder
from pipeline.evaluation.captions import PICTURES, told_on, told_scores_of, words_on
from pipeline.evaluation.classes import said_on
from pipeline.evaluation.config import Ranking
from pipeline.evaluation.retrieval import rank_fine_tuned
from pipeline.evaluation.source import Source
from pipeline.exports import build_classification_model
from pipeline.generation import CaptionConfig
from pipeline.metrics.caption_tally import WORD_ACCURACY
from pipeline.metrics.tally import check_identified, check_metric, check_programs
from pipeline.metrics.tasks import Score
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classes import RETRIEVAL, TEXTS, Classes
from pipeline.tasks.classification import ClassificationModel, ClassificationTask
from pipeline.tasks.retrieval import RERANKED
from pipeline.tasks.retrieval_model import RetrievalModel
from pipeline.together import together
from pipeline.trim_config import TrimConfig
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import Trimmers
from pipeline.validation import CONSISTENCY, Scored, Validation, ValidationConfig

Weights = Mapping[str, Tensor]


def exported_model(
    described: dict[str, Any], classes: Classes, weights: Weights, shifts: Mapping[str, float], device: torch.device
) -> ClassificationModel:
    """The model of an export, with training's shifts in its trimmers, in evaluation mode.

    Args:
        described: Its config.json.
        classes: Of its head.
        weights: As training has them.
        shifts: Added to all scores of a group.
        device: Where it goes.
    """
    plain = build_classification_model(described, classes)
    plain.load_state_dict(weights)
    plain.to(device).eval()
    if isinstance(plain.trimmers, Trimmers):
        plain.trimmers.shift_groups(shifts)  # of what is scored; what is not has no shift
    return plain


def validation_of(
    config: TrimConfig,
    target: Target,
    task: ClassificationTask,
    inputs: Inputs,
    read: LoaderConfig,
    process: Process,
    exported: Callable[[], ClassificationModel],
) -> Validation | None:
    """What scores a fine-tuning; None where it is not to be scored.

    Args:
        config: Of the stage.
        target: Of the stage.
        task: That is trained.
        inputs: Data and tokenizer.
        read: How the exported model reads data (`TrimConfig.exported_loader`).
        process: This rank.
        exported: Makes the model as it would be exported now; every rank calls it.

    Raises:
        UserError: The metric is none of the task's or cannot be computed here, or the split has nothing for the task.
    """
    if not config.validation.every_steps:
        return None
    wanted = config.validation
    check_metric(config.task, wanted.metric)
    # Programs are wanted where rank 0 is, which scores for all.
    together(process, lambda: check_programs(wanted.metric) if process.is_main else None, "trim.validation")
    scored = _way(config, inputs, read, process)

    def score() -> Scored:
        # Making a model draws its weights, and training's own draws must not depend on how often it is scored.
        with torch.random.fork_rng([] if process.device == "cpu" else [process.torch_device]):
            return scored(exported())

    falls = config.method != "ftkd" and not target.is_full
    # What no trimmer learns costs the same from then on, however near to the target that is.
    share = 1 / task.target if config.learns and not target.is_full else None
    return Validation(wanted, config.smarttrim.curriculum.share if falls else 0.0, score, share)


def _way(
    config: TrimConfig, inputs: Inputs, read: LoaderConfig, process: Process
) -> Callable[[ClassificationModel], Scored]:
    """How a task's models are scored: by answers, captions that they tell, words behind right ones, or ranks.

    Raises:
        UserError: The split has nothing for the task, or no ids for the metric; so before training.
    """
    wanted, tokenizer = config.validation, inputs.load_tokenizer()
    source = Source(split=inputs.data / wanted.split, loader=read, tokenizer=tokenizer)
    way: Callable[[Source, ClassificationModel], Scored] = partial(_answered, wanted, process)
    if wanted.metric == WORD_ACCURACY:
        behind = tokenizer.behind(config.captions.prompt)  # as in training, and as long
        source, way = replace(source, tokenizer=behind), partial(_worded, wanted, process)
    elif config.task == "captioning":
        way = partial(_told, wanted, process, config.captions)
    elif config.task == RETRIEVAL.task:
        way = partial(_ranked, wanted, process)
    source.batches(TEXTS[config.task], wanted.batch_size, process)  # refuses a split that has none
    if TEXTS[config.task] == "questions":
        questions_of(ShardFolder(source.split, source.loader), process).refuse_alike(source.split)
    if wanted.metric == CONSISTENCY:
        together(process, lambda: _check_ids(config, source) if process.is_main else None, source.split)
    return partial(way, source)


def _check_ids(config: TrimConfig, source: Source) -> None:
    """What preflight cannot see of a split behind a URL."""
    wanted = config.validation
    check_identified(config.task, wanted.metric, wanted.split, first_samples(source.split, source.loader))


def _batches(wanted: ValidationConfig, process: Process, source: Source, text: TextKind) -> StepLoader:
    return source.batches(text, wanted.batch_size, process, wanted.samples, spread=wanted.samples is not None)


def _answered(wanted: ValidationConfig, process: Process, source: Source, model: ClassificationModel) -> Scored:
    said = said_on(model, source, _batches(wanted, process, source, model.classes.text), process)
    # Consistency too where some could not be used: states are compared, all of them on the same instances.
    return Scored(values_of(said.tally.scores(), sampled=wanted.samples is not None), said.costs.share)


def _told(
    wanted: ValidationConfig, process: Process, search: CaptionConfig, source: Source, model: ClassificationModel
) -> Scored:
    assert isinstance(model, CaptioningModel)
    captioner = Captioner(model, source.tokenizer, search)
    with torch.inference_mode():
        told = told_on(captioner, source, _batches(wanted, process, source, PICTURES), process)
    # Of all pictures, not of domains: one corpus tells which weights are best.
    judged = told_scores_of(told, process)
    return Scored(values_of(judged[""].scores if judged else [], sampled=False), told.costs.share)


def _worded(wanted: ValidationConfig, process: Process, source: Source, model: ClassificationModel) -> Scored:
    told = words_on(model, source, _batches(wanted, process, source, model.classes.text), process)
    return Scored({WORD_ACCURACY: 100 * told.right / told.words}, told.costs.share)


def _ranked(wanted: ValidationConfig, process: Process, source: Source, model: ClassificationModel) -> Scored:
    assert isinstance(model, RetrievalModel)
    images = partial(_batches, wanted, process, source, EveryImage())
    ranking = Ranking(batch_size=wanted.batch_size, rerank=RERANKED)
    found = rank_fine_tuned(model, source, images, ranking, process)
    return Scored({one.metric: one.value for one in found.evaluated.scores}, found.costs.share)


def values_of(scores: Iterable[Score], *, sampled: bool) -> dict[str, float]:
    """By metric; of a sample without what only whole groups have."""
    return {one.metric: one.value for one in scores if not (sampled and one.metric == CONSISTENCY)}
