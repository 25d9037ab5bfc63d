"""Checks before anything starts, so that a mistake costs seconds and not the first hour."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data_prep.errors import UserError
from data_prep.sources.published import split_paths
from launch.config import RunConfig, TaskConfig
from launch.given import check_given
from launch.machine import available_cpus, available_gpus
from launch.reading import below
from launch.split_texts import check_texts
from launch.stages import plan_source, pretrain_counts
from launch.tasks import tasks_of, training_stages
from pipeline.checkpoint_places import open_place
from pipeline.data.first_samples import first_samples
from pipeline.data.sample import Sample, questions_in
from pipeline.data.text import Tokenizer
from pipeline.deepspeed_json import check_settings
from pipeline.engine import preflight_deepspeed
from pipeline.metrics.captions import missing_for_captions
from pipeline.metrics.tally import check_identified, check_metric, check_programs
from pipeline.models.backbone import Backbone
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.build import build_model
from pipeline.param_groups import check_lr_scales
from pipeline.process import Process
from pipeline.setup import check_batch, check_padding
from pipeline.tasks.classes import ANSWERING, TOLD, has_task
from pipeline.trim import check_targets

log = logging.getLogger(__name__)

_GIB = 2**30
_WANTED = {
    "snli_ve": ("statements with a relation", "snli_ve"),
    "vqa": ("questions with annotators' answers", "vqa"),
    "nlvr2": ("statements about pairs of pictures", "nlvr2"),
    "vqa_generative": ("questions with annotators' answers", "vqa"),
}
"""What a task learns, and the data set that has it."""
_EVALUATED = "evaluate.statement_splits"
_TOLD_OF_ALL = ("statement", *TOLD)  # of such the loader refuses a split that has none
_SPARE_BYTES = 256 * 2**20
_STATE_COPIES = 4  # weights, two moments, momentum tower: 4 bytes each


def check(config: RunConfig, out: Path, until: str | None = None) -> None:
    """Refuses a run that cannot work.

    Args:
        config: Of the run.
        out: Its folder.
        until: The last kind of stage that is to run (`launch.stages.KINDS`); None for all.

    Raises:
        UserError: naming what is wrong, with which numbers, and how to mend it.
    """
    check_given(config, until)
    if until == "trim" and not any(task.config.trim.targets for task in tasks_of(config)):
        raise UserError("trim.targets=[] leaves nothing to trim; name at least one, such as --targets '[2.0]'")
    _check_processes(config)
    _check_engine(config)
    _check_splits(config)
    for task in tasks_of(config):
        try:
            _check_task(task.config)
        except UserError as error:
            raise UserError(below(task.key, TaskConfig, str(error))) from error
    plan = plan_source(config.data)
    check_texts(config, lambda split: plan[split].folder, until)
    _check_words(config)
    if config.pretrained is None:
        check_lr_scales(_meta_model(config), config.pretrain.lr_scales)
    if config.checkpoint.path is not None:
        open_place(config.checkpoint.path, Process(world_size=_processes(config)))
    _check_disk(config, out)


def _check_task(config: RunConfig) -> None:
    """Checks what a run does for one task, as if it were its only one."""
    _check_training(config)
    _check_evaluation(config)
    _check_task_splits(config)
    _check_labels(config)


def _check_processes(config: RunConfig) -> None:
    cluster = config.cluster
    if config.launcher == "local" or _elsewhere(config):
        return
    workers = cluster.counts[0] if config.pretrained is None else 1
    if cluster.placement == "strict_spread" and workers > 1:
        raise UserError(
            f"cluster.placement=strict_spread wants a machine for each of cluster.workers={workers}, but without "
            "cluster.address there is only this one; set --cluster.placement spread, or give --cluster.address"
        )
    cpus, wanted = available_cpus(), workers * cluster.cpus_per_worker
    if wanted > cpus:
        fitting = int(cpus // cluster.cpus_per_worker)
        fix = f"--cluster.workers {fitting}" if fitting else f"--cluster.cpus_per_worker {cpus}"
        raise UserError(
            f"cluster.workers={workers} with {cluster.cpus_per_worker:g} CPUs each need {wanted:g} CPUs, "
            f"but this machine has {cpus}; set {fix}"
        )
    gpus, wanted = available_gpus(), workers * cluster.gpus_per_worker
    if wanted > gpus:
        fitting = int(gpus // cluster.gpus_per_worker)
        fix = f"--cluster.workers {fitting}" if fitting else f"--cluster.gpus_per_worker {min(1, gpus)}"
        raise UserError(
            f"cluster.workers={workers} with {cluster.gpus_per_worker:g} GPUs each need {wanted:g} GPUs, "
            f"but this machine has {gpus}; set {fix}"
        )


def _elsewhere(config: RunConfig) -> bool:
    """Whether another cluster does the work, whose machines may have what this one has not."""
    return config.launcher != "local" and config.cluster.address is not None


def _check_training(config: RunConfig) -> None:
    workers = _processes(config)
    if not config.tokenizer.end and config.model.backbone in ("blip", "clip"):
        raise UserError(
            f"tokenizer.end=false does not go with model.backbone={config.model.backbone}, which "
            + ("tells captions up to their end" if config.model.backbone == "blip" else "pools texts at their end")
            + "; leave it out"
        )
    if config.trim.targets:
        if config.model.backbone == "clip":
            raise UserError(
                "model.backbone=clip has no fusion layers, so it can neither judge statements nor answer questions; "
                "set --trim.targets '[]' and --evaluate.statement_splits '[]'"
            )
        trimming = workers if config.launcher == "local" else 1
        if config.trim.validation.every_steps:
            check_metric(config.trim.task, config.trim.validation.metric)
            if not _elsewhere(config):  # the worker looks too, before it trains
                check_programs(config.trim.validation.metric)
        batch, least = config.trim.loop.global_batch, config.trim.least
        check_batch("trim", batch, trimming, config.engine, config.loader, least)
        tuned = _meta_model(config, config.trim.image_size)
        check_targets(config.trim, tuned, config.pretrain.pruning, config.loader.max_tokens)
        if config.trim.leaves_pruning(config.model.backbone, config.pretrain.pruning):
            log.warning(
                "trim.method=%s cannot keep pre-training's pruning: its speed-ups count from another full model than "
                "those of methods that keep it; to compare them give GFLOPs, or trim.keep_pruning=false for all",
                config.trim.method,
            )


def _processes(config: RunConfig) -> int:
    """Processes of a training stage at most: with the local launcher, what torchrun started."""
    return pretrain_counts(config)[-1]


def _check_engine(config: RunConfig) -> None:
    if config.engine.compile and any(task.trims for task in tasks_of(config)):
        log.warning("engine.compile is for pre-training only; the trim stages, whose shapes change, are not compiled")
    if config.engine.name == "deepspeed":
        preflight_deepspeed()
        check_settings(config.engine.deepspeed_json)
    elif _processes(config) > 1:
        raise UserError(
            f"engine.name={config.engine.name} runs one process, not {_processes(config)}; "
            "use --engine.name deepspeed, or --cluster.workers 1"
        )


def _check_evaluation(config: RunConfig) -> None:
    wanted = config.evaluate
    if config.trim.targets and not wanted.statement_splits:
        raise UserError(
            f"evaluate.statement_splits is empty, but trim.targets={list(config.trim.targets)} makes models for "
            f"trim.task={config.trim.task}; name a split, or set trim.targets to []"
        )
    if wanted.pictures and not (wanted.picture_split or wanted.retrieval_splits or config.trim.targets):
        raise UserError(
            f"evaluate.pictures={wanted.pictures} are to be drawn, but no split is evaluated; name one in "
            "evaluate.picture_split, or set evaluate.pictures to 0"
        )


def _check_splits(config: RunConfig) -> None:
    """Looks for the raw files, and whether every split that pre-training wants will be there."""
    wanted = {"pretrain.splits": list(config.pretrain_splits)}
    wanted["evaluate.retrieval_splits"] = list(config.evaluate.retrieval_splits)
    _look_for(config, wanted)


def _check_task_splits(config: RunConfig) -> None:
    wanted: dict[str, list[str]] = {}
    if config.evaluate.picture_split is not None and config.evaluate.pictures:
        wanted["evaluate.picture_split"] = [config.evaluate.picture_split]
    if config.trim.targets:
        wanted["trim.splits"] = list(config.trim.splits)
        wanted[_EVALUATED] = list(config.evaluate.statement_splits)
        if config.trim.validation.every_steps:
            wanted["trim.validation.split"] = [config.trim.validation.split]
    _look_for(config, wanted)


def _look_for(config: RunConfig, wanted: Mapping[str, Sequence[str]]) -> None:
    plan = plan_source(config.data)
    splits = {name for name, split in plan.items() if split.size != 0 and config.data.sizes.get(name) != 0}
    for key, names in wanted.items():
        for name in names:
            if name not in splits:
                raise UserError(
                    f"{key} names the split {name!r}, but data.name={config.data.name} gives "
                    f"{', '.join(sorted(splits))}; choose one of these (data.sizes may have left it out)"
                )


def _check_labels(config: RunConfig) -> None:
    """Looks whether the data says what the task learns: by its source, or in the first samples of shards at hand."""
    task = config.trim.task
    if config.trim.targets and task == "captioning" and (missing := missing_for_captions()):
        log.warning(
            "captions will be told, but not scored, and their evaluation is done again once they can: %s", missing
        )
    if task in _TOLD_OF_ALL or not config.trim.targets:
        return
    plan, (wanted, source) = plan_source(config.data), _WANTED[task]
    scored = {config.trim.validation.split: "trim.validation.split"} if config.trim.validation.every_steps else {}
    told = dict.fromkeys(config.evaluate.statement_splits, _EVALUATED) | scored
    learned = dict.fromkeys(config.trim.splits, "trim.splits")
    for split, key in (learned | told | learned).items():  # what is learned comes first, and counts
        folder = plan[split].folder
        first = [] if folder is None else first_samples(folder)
        fits = any(has_task(sample, task, answered=key != _EVALUATED) for sample in first)
        if not (fits or config.data.name == source):
            unread = not first and (folder is None or key == _EVALUATED)  # behind a URL, empty, or damaged at its head
            if config.data.name == "shards" and unread:
                continue  # the stage looks itself; of what is learned that would be hours too late
            raise UserError(
                f"trim.task={task} wants {wanted}, which {split!r} of data.name={config.data.name} does not "
                f"have; make shards of such data with `trimline shard {source}`, and name them in {key}"
            )
        if split in told and task in ANSWERING:
            _check_question_ids(split, first)
        if split in scored:
            check_identified(task, config.trim.validation.metric, split, first)


def _check_question_ids(split: str, samples: list[Sample]) -> None:
    """Refuses, before training, questions whose answers could not be told apart behind it."""
    for sample in samples:
        if any(question.get("question_id") is None for question in questions_in(sample.fields)):
            raise UserError(
                f"{sample.key} of {split!r} has a question without question_id, which tells results apart; give each "
                "one an id, as `trimline shard vqa` does"
            )


def _check_words(config: RunConfig) -> None:
    """Looks whether a given tokenizer can be read, and whether the model knows its padding."""
    given = config.tokenizer.path
    # Every tokenizer that is trained here pads with its first word.
    pad_id = 0 if given is None else Tokenizer.from_pretrained(Path(given).expanduser()).pad_id
    check_padding(config.model, pad_id)


def _check_disk(config: RunConfig, out: Path) -> None:
    there = next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"out={config.out} cannot be written ({there} is not yours); give another with --out DIR")
    needed, free = needed_bytes(config), shutil.disk_usage(there).free
    if out.is_dir():
        needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    if needed > free:
        raise UserError(
            f"out={config.out} needs about {max(needed, 0) / _GIB:.2f} GiB more, but {there} has {free / _GIB:.2f} "
            "GiB free; free some space, or give a folder on another disk with --out DIR"
        )


def needed_bytes(config: RunConfig) -> int:
    """About how much a run writes: shards, checkpoints and exports."""
    models = len(training_stages(config))
    weights = 4 * _parameters(config)
    rules = config.checkpoint
    # One more than are kept, for it is written before another goes; those of `keep_every_steps` nobody can foresee.
    validated = any(task.config.trim.validation.every_steps for task in tasks_of(config))
    checkpoints = 0 if rules.path is not None else rules.keep_last + rules.keep_best + validated + 1
    return _shard_bytes(config) + models * weights * (1 + _STATE_COPIES * checkpoints) + _SPARE_BYTES


def _shard_bytes(config: RunConfig) -> int:
    if config.data.name == "shards":
        return 0  # they are linked
    if config.data.name == "shapes":
        plan = plan_source(config.data)
        samples = sum(split.size or int(split.identity.get("size", 0)) for split in plan.values())
        # A drawn picture takes about 0.4 bytes a pixel as PNG, its texts and tar headers about 6 KiB.
        return int(samples * (0.4 * config.data.image_size**2 + 6 * 2**10))
    given = [file.path for file in split_paths([config.data.root or "", *config.data.annotations, *config.data.images])]
    files = (path for top in given if str(top) != "." for path in (top, *top.rglob("*")) if path.is_file())
    return sum(path.stat().st_size for path in files)


def _parameters(config: RunConfig) -> int:
    """How many weights the model has, with as many words as the tokenizer may get."""
    return sum(parameter.numel() for parameter in _meta_model(config).parameters())


def _meta_model(config: RunConfig, image_size: int | None = None) -> Backbone:
    """The model without memory for its weights; for pictures of another size where one is given."""
    model = config.model.at_image_size(image_size)
    words = model.text.vocab_size
    if config.pretrained is None:
        words = max(words, config.tokenizer.vocab_size + EXTRA_WORDS)
    with torch.device("meta"):
        return build_model(replace(model, text=replace(model.text, vocab_size=words)))
