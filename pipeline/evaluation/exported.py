"""Any export folder on any split: the table of tasks, and what one process of an evaluation does."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data_prep.errors import UserError
from pipeline.captioner import Captioner
from pipeline.checkpoint import load_weights
from pipeline.data.first_samples import first_samples
from pipeline.data.questions import questions_of
from pipeline.data.sample import EveryImage, TextKind
from pipeline.data.shards import ShardFolder
from pipeline.evaluation.against import check_against, scores_against
from pipeline.evaluation.captions import PICTURES, told_on, told_scores_of
from pipeline.evaluation.classes import said_on
from pipeline.evaluation.config import Ranking
from pipeline.evaluation.fitting import check_of_task
from pipeline.evaluation.opened import open_export
from pipeline.evaluation.retrieval import evaluate_retrieval, rank_fine_tuned
from pipeline.evaluation.scores import Evaluated, Score
from pipeline.evaluation.source import Source
from pipeline.evaluation.zero_shot import PLACE, TEMPLATES, evaluate_zero_shot
from pipeline.exports import caption_config
from pipeline.measure.latency import Instance, alone
from pipeline.measure.single import SingleLatency, single_latency
from pipeline.metrics.captions import missing_for_captions
from pipeline.metrics.tally import check_can_be_written, check_result_file, lacking_in
from pipeline.metrics.tasks import score_of
from pipeline.models.backbone import Backbone
from pipeline.models.blip_tasks import BlipCaptioner
from pipeline.precision import Precision, products_in
from pipeline.process import Process
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classes import TEXTS, TOLD
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.retrieval import RERANKED, pair_score
from pipeline.tasks.retrieval_model import RetrievalModel
from pipeline.together import together

TIMED = 16
"""Instances whose time is taken."""

_UNANSWERED, _UNTOLD = "none of its questions has annotators' answers", "none of its pictures has a caption"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is asked of an export folder.

    Attributes:
        model: The folder.
        task: One of `TASKS`.
        split: Folder of indexed shards, or its URL.
        tokenizer: Folder of the tokenizer; None for the model's own.
        batch_size: Instances at once.
        limit: Images or statements, the first ones; None for all.
        rerank: Of retrieval, candidates that matching re-ranks; 0 ranks by features alone.
        precision: bf16 is autocast.
        label_field: Of zero_shot, where the labels stand; see `EveryImage`.
        classes: Of zero_shot, their names; empty for all labels there are.
        templates: Of zero_shot, with ``{}`` for the class.
        captions: Of captioning, what is searched for otherwise than the export says (`CaptionConfig`).
        answers: Of vqa and vqa_generative, JSON file with the list, for imported weights, which have none.
        predictions: File to write for the task's server; None for none.
        outcomes: File to write what became of each instance into; None for none.
        against: Such a file, of another model on the same instances; None for none.
    """

    model: Path
    task: str
    split: str
    tokenizer: Path | None = None
    batch_size: int = 64
    limit: int | None = None
    rerank: int = RERANKED
    precision: Precision = "float32"
    label_field: str | None = None
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = TEMPLATES
    captions: Mapping[str, Any] = field(default_factory=dict)
    answers: Path | None = None
    predictions: Path | None = None
    outcomes: Path | None = None
    against: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("limit", 1), ("rerank", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} {value} must be at least {least}")
        for template in self.templates:
            if PLACE not in template:
                raise UserError(f"--templates: {template!r} has no {PLACE}, which stands for the name of the class")
        if self.task == "zero_shot" and self.label_field is None:
            raise UserError("--task zero_shot needs --label-field, the field of KEY.json that holds an image's class")
        if self.captions and self.task != "captioning":
            raise UserError(f"--{next(iter(self.captions)).replace('_', '-')} is for --task captioning; leave it out")
        for name, wanted in (("answers", "a JSON list of different texts"), ("against", "what --outcomes wrote")):
            if (file := getattr(self, name)) is not None and not file.is_file():
                raise UserError(f"--{name} {file}: no such file; give {wanted}")
        if self.against is not None:
            check_against(self.against, self.outcomes)
        if self.predictions is not None:
            check_result_file(self.task, self.predictions)
        if self.outcomes is not None:
            check_can_be_written("--outcomes", self.outcomes, ".npz")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process's part of an evaluation, with what it needs.

    Attributes:
        evaluation: What is asked.
        model: In evaluation mode, on the process's device.
        source: The split as the model takes it.
        process: This rank.
    """

    evaluation: Evaluation
    model: nn.Module
    source: Source
    process: Process

    @cached_property
    def captioner(self) -> Captioner:
        """The model as a captioner; made once, for its time is that of telling."""
        assert isinstance(self.model, CaptioningModel | BlipCaptioner)
        _, described = load_weights(self.evaluation.model)
        config = replace(caption_config(described), **self.evaluation.captions)
        return Captioner(self.model, self.source.tokenizer, config)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A way to evaluate a model.

    Attributes:
        text: What goes with the pictures whose time is taken.
        evaluate: All of a split.
        instance: What one instance takes from pixels to score, for its time.
    """

    text: TextKind
    evaluate: Callable[[Job], Evaluated]
    instance: Callable[[Job, Instance], object]


def _retrieval(job: Job) -> Evaluated:
    what = job.evaluation
    images = partial(job.source.batches, EveryImage(), what.batch_size, job.process, what.limit)
    ranking = Ranking(batch_size=what.batch_size, rerank=what.rerank)
    if isinstance(job.model, RetrievalModel):
        return rank_fine_tuned(job.model, job.source, images, ranking, job.process).evaluated
    assert isinstance(job.model, Backbone)
    return evaluate_retrieval(job.model, job.source, images(), ranking, job.process)


def _zero_shot(job: Job) -> Evaluated:
    assert isinstance(job.model, Backbone)
    what = job.evaluation
    assert what.label_field is not None
    return evaluate_zero_shot(
        job.model,
        job.source,
        job.source.batches(EveryImage(label=what.label_field), what.batch_size, job.process, what.limit),
        field=what.label_field,
        classes=what.classes,
        templates=what.templates,
        batch_size=what.batch_size,
        process=job.process,
    )


def _classes(job: Job) -> Evaluated:
    assert isinstance(job.model, ClassificationModel)
    what = job.evaluation
    loader = job.source.batches(job.model.classes.text, what.batch_size, job.process, what.limit)
    # Before the whole split is judged for a file that cannot be written.
    together(job.process, lambda: _check_ids(job) if job.process.is_main else None, what.split)
    if job.model.classes.text == "questions":
        questions = questions_of(ShardFolder(what.split, job.source.loader), job.process)
        _refuse_unscored(what, questions.answered, _UNANSWERED)
    said = said_on(job.model, job.source, loader, job.process)
    outcomes, lacking = said.outcomes()
    scores = [score_of(one) for one in outcomes]
    if what.predictions is not None:
        _refuse_lacking(what.predictions, said.tally.lacking)
    _refuse_unscored(what, len(scores), _UNANSWERED)
    return Evaluated(
        scores=[Score.of(one) for one in scores],
        gmacs=[macs / 1e9 for macs in said.costs.macs],
        samples=said.samples,
        skipped=said.skipped,
        whole=said.whole,
        left_out=said.left_out,
        more={} if lacking is None else {"lacking": lacking},
        write=said.tally.write,
        outcomes=outcomes,
        digest=said.digest,
    )


def _check_fits(job: Job) -> None:
    what = job.evaluation
    check_of_task(what.task, what.split, first_samples(what.split, job.source.loader))


def _check_ids(job: Job) -> None:
    what = job.evaluation
    if what.predictions is not None:
        _refuse_lacking(what.predictions, lacking_in(what.task, first_samples(what.split, job.source.loader)))


def _refuse_unscored(what: Evaluation, known: int, why: str) -> None:
    """Refuses a split of which nobody says what is right, unless what the model says is to be written.

    So before all of it is judged for nothing, and once more behind it, where a limit has left out what is known.
    """
    if not known and what.predictions is None:
        raise UserError(
            f"{what.split}: {why}; use a split that has them, or write what is said with --predictions FILE"
        )


def _refuse_lacking(predictions: Path, lacking: str | None) -> None:
    if lacking is not None:
        raise UserError(f"--predictions {predictions} cannot be written: {lacking}; or leave it out")


def _captioning(job: Job) -> Evaluated:
    what, captioner = job.evaluation, job.captioner
    captions = ShardFolder(what.split, job.source.loader).units("captions", "pair").total
    _refuse_unscored(what, captions, _UNTOLD)
    # One rank looks for the programs and scores: others might find something else, and all must go the same way.
    missing = together(job.process, lambda: missing_for_captions() if job.process.is_main else None, "captions")[0]
    if missing is not None and what.predictions is None:
        raise UserError(f"{missing}; or have the captions written with --predictions FILE")
    loader = job.source.batches(PICTURES, what.batch_size, job.process, what.limit)
    told = told_on(captioner, job.source, loader, job.process)
    judged = {} if missing is not None else told_scores_of(told, job.process)
    _refuse_unscored(what, len(judged), _UNTOLD)
    return Evaluated(
        scores=[Score.of(one, domain) for domain, found in judged.items() for one in found.scores],
        gmacs=[macs / 1e9 for macs in told.costs.macs],
        samples=told.samples,
        skipped=told.skipped,
        whole=loader.whole,
        left_out=told.left_out,
        more={"search": asdict(captioner.config), "unscored": missing},
        write=told.tally.write,
        outcomes=judged[""].outcomes if judged else (),
        digest=told.digest,
    )


def _one_pair(job: Job, instance: Instance) -> object:
    if isinstance(job.model, RetrievalModel):
        return _one_text(job, instance)
    assert isinstance(job.model, Backbone)
    return pair_score(job.model, *instance)


def _one_image(job: Job, instance: Instance) -> object:
    assert isinstance(job.model, Backbone)
    return job.model.image_feature(job.model.encode_image(instance.pixels))


def _one_caption(job: Job, instance: Instance) -> object:
    return job.captioner.tell(instance.pixels)


def _one_text(job: Job, instance: Instance) -> object:
    model = job.model
    assert isinstance(model, ClassificationModel)
    trimming = model.trimming(instance.ids_1L, instance.mask_1L)
    return model.classify(*instance, [] if trimming is None else [trimming])


TASKS: dict[str, Task] = {
    "retrieval": Task(text="captions", evaluate=_retrieval, instance=_one_pair),
    "zero_shot": Task(text=EveryImage(), evaluate=_zero_shot, instance=_one_image),
    **{
        name: Task(text=text, evaluate=_classes, instance=_one_text) for name, text in TEXTS.items() if name not in TOLD
    },
    "captioning": Task(text=PICTURES, evaluate=_captioning, instance=_one_caption),
}
"""By the names that ``--task`` knows; launch/cli_evaluate.py repeats them."""


def evaluate_export(evaluation: Evaluation, process: Process) -> dict[str, Any]:
    """One process's part; all processes of the group call it together.

    Returns:
        JSON-able: what was asked, scores, costs, time and parameters; the same on every rank but for the time, which
        rank 0 alone takes (None elsewhere).

    Raises:
        UserError: The folder cannot do the task, the split has nothing for it, or an option does not fit.
    """
    process.claim_device()
    task, opened = TASKS[evaluation.task], list[tuple[nn.Module, Source]]()
    # All of them refuse what one cannot open.
    asked = (evaluation.model, evaluation.task, evaluation.split, evaluation.tokenizer, evaluation.answers)
    together(process, lambda: opened.append(open_export(*asked)), evaluation.model)
    model, source = opened[0]
    model = model.to(process.torch_device).eval()
    job = Job(evaluation=evaluation, model=model, source=source, process=process)
    together(process, lambda: _check_fits(job) if process.is_main else None, evaluation.split)
    with products_in(evaluation.precision, process.torch_device):
        found = task.evaluate(job)
        latency = _time(job, task) if process.is_main else None
    if evaluation.predictions is not None and found.write is not None and process.is_main:
        evaluation.predictions.parent.mkdir(parents=True, exist_ok=True)
        found.write(evaluation.predictions)
    keep = partial(scores_against, found, evaluation.outcomes, evaluation.against)
    scores, missing = together(process, lambda: keep() if process.is_main else ([], None), evaluation.model)[0]
    return {
        **{name: str(getattr(evaluation, name)) for name in ("model", "task", "split", "precision")},
        "batch_size": evaluation.batch_size,
        "processes": process.world_size,
        "samples": found.samples,
        "skipped": found.skipped,
        **({"left_out": found.left_out} if found.left_out else {}),
        **found.more,
        **({} if missing is None else {"not_compared": missing}),
        **({"incomplete": str(evaluation.predictions)} if _incomplete(evaluation, found) else {}),
        "scores": scores,
        "gmacs": _spread(found.gmacs),
        "latency": None if latency is None else asdict(latency),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _incomplete(evaluation: Evaluation, found: Evaluated) -> bool:
    """Whether a result file lacks instances of the split, so that the task's server would not take it."""
    return evaluation.predictions is not None and (not found.whole or found.skipped > 0 or found.left_out > 0)


def _time(job: Job, task: Task) -> SingleLatency:
    count = TIMED if job.evaluation.limit is None else min(TIMED, job.evaluation.limit)
    batch = next(iter(job.source.batches(task.text, count, Process(), count, spread=True)))
    if not len(batch):
        raise UserError(f"{job.source.split}: none of {count} samples could be read, so no time could be taken")
    instances = alone(batch, range(len(batch)), job.source.normalise, job.process.torch_device)
    return single_latency(partial(task.instance, job), instances)


def _spread(gmacs: list[float]) -> dict[str, float]:
    """Mean, standard deviation, and between which the middle nine tenths lie; in the same bits in whatever order."""
    ordered = np.sort(np.asarray(gmacs))
    low, high = np.quantile(ordered, [0.05, 0.95])
    mean = math.fsum(gmacs) / len(gmacs)
    return {"mean": mean, "std": float(ordered.std()), "low": float(low), "high": float(high)}
