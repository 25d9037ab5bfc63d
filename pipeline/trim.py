"""The trimming stage: a pre-trained backbone -> task head and trimmers, fine-tuned together -> export.

Baselines take SmartTrim's place here, in the same loop (`pipeline.trim_begin`).

T instances that are drawn, each a split's.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import read_json
from pipeline.checkpoint import export_weights
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import LoaderConfig, eval_loader
from pipeline.data.mix import deal, quotas
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer
from pipeline.engine import Engine, EngineConfig, build_engine, split_decay
from pipeline.exports import AS_WRITTEN, captions_of, describe_method, load_backbone
from pipeline.generation import check_prompt, prompt_ids
from pipeline.handoff import check_fits
from pipeline.log_facts import LogFacts, device_peak
from pipeline.measure.step_macs import classification_macs
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import recompute_activations
from pipeline.models.config import ModelConfig
from pipeline.param_groups import bounded_temperature, check_lr_scales, scale_of, scaled_groups, scales_that_count
from pipeline.process import Process
from pipeline.progress import ProgressFile
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.rng_state import seed_everything
from pipeline.setup import Inputs, check_batch, check_room, export_config
from pipeline.stage import Stage
from pipeline.tasks.answer_list import ANSWERS, describe_answers, make_answers
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classes import ANSWERING, LEARNED, Captions, Classes, classes_of
from pipeline.tasks.classification import ClassificationModel, ClassificationTask
from pipeline.tasks.fine_tuned import fine_tuned
from pipeline.tasks.generative_vqa import RankedAnswers
from pipeline.tasks.retrieval_model import RetrievalModel
from pipeline.train import train
from pipeline.training_data import training_batches
from pipeline.trim_begin import Beginning
from pipeline.trim_config import TrimConfig
from pipeline.trim_plan import Examples, Plan, check_before, plan_target
from pipeline.trim_settle import Settled, Settler
from pipeline.trim_validate import Weights, exported_model, validation_of
from pipeline.trimming.cost import units_of
from pipeline.trimming.guides import guides_in_words
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import TrimmerConfig, Trimmers

log = logging.getLogger(__name__)

TYPICAL_TEXTS = 512
_MOVED = 0.1
"""Share by which settling may change the cost without a word."""


def check_targets(config: TrimConfig, backbone: Backbone, pruning: PruningConfig, max_tokens: int) -> None:
    """Refuses, before anything runs, targets that no text can reach; times are checked when the stage begins.

    Args:
        config: Its targets and method.
        backbone: May be without memory for its weights.
        pruning: Of pre-training.
        max_tokens: Of the loader.

    Raises:
        UserError: Naming the highest target; or pruning is to be kept that cannot be, or nothing would be learned.
    """
    targets = [Target.parse(target) for target in config.targets]
    config.check_taught(targets)
    kept = config.kept_pruning(backbone.config.backbone, pruning)
    with next(backbone.parameters()).device:
        more: dict[str, Any] = {} if kept is None else {"pruning": kept}
        more |= config.of_task
        model = fine_tuned(backbone, config.trims, config.policy, classes=_supposed(config), **more)
    check_lr_scales(model.backbone, config.lr_scales, "trim.lr_scales")
    trained, key = max_tokens, "loader.max_tokens"
    if config.max_tokens is not None:
        trained, key = config.max_tokens, "trim.max_tokens"
    check_room(backbone.config.text, trained, key)
    if config.task == "captioning":
        check_room(backbone.config.text, config.captions.max_length, "trim.captions.max_length")
        check_prompt(config.captions, 1 + len(config.captions.prompt.split()), trained)
    check_before(targets, model, config.exported_tokens(max_tokens))


def _supposed(config: TrimConfig) -> Classes:
    """What the head will tell apart, before data and tokenizer are there: with fewer answers less is refused."""
    if config.task == "captioning":
        return captions_of(config.captions, 1 + len(config.captions.prompt.split()))
    if config.task == "vqa_generative":
        return RankedAnswers("vqa_generative", ("yes", "no"), ((0, 1, 2),) * 2)
    return classes_of(config.task, ("yes", "no"))


def trim(
    config: TrimConfig,
    target: Target,
    backbone: Path,
    model_config: ModelConfig,
    inputs: Inputs,
    stage: Stage,
    teacher: Path | None = None,
    pruning: ElipConfig | None = None,
) -> dict[str, Any]:
    """Fine-tune and export; returns the counts of `train`.

    Args:
        config: Of all targets.
        target: The one to train here.
        backbone: Export folder of a pre-training stage.
        model_config: Sizes that its model is to have.
        inputs: Data, tokenizer, loader, engine, seed.
        stage: Folder, process, budget.
        teacher: Export folder of the fine-tuned full model, where it is looked at or begun from.
        pruning: That the backbone keeps (`TrimConfig.kept_pruning`).

    Raises:
        UserError: The target cannot be reached, or the checkpoint does not fit the run.
    """
    config.check_taught([target])
    process = stage.process
    pretrained, inputs = inputs.loader, replace(inputs, loader=config.loader(inputs.loader))
    read = config.exported_loader(pretrained)
    batch = config.loop.global_batch
    settled = check_batch("trim", batch, process.world_size, inputs.engine, inputs.loader, config.least)
    config = config.within(batch // settled.accumulation)
    seed_everything(inputs.seed, 1000)
    tokenizer = inputs.load_tokenizer()
    trained = _pretrained(config, backbone, model_config, tokenizer, pretrained, process)
    reader = tokenizer.behind(config.captions.prompt) if config.task == "captioning" else tokenizer
    together = batch // process.world_size // settled.accumulation  # as many as training has
    # Texts as long as the export reads them: a target that is settled on shorter ones is missed wherever it is used.
    examples = _examples(config, replace(inputs, loader=read), reader, together)
    classes = _classes(config, inputs, tokenizer, process)
    beginning = Beginning(config, target, teacher, inputs, examples, process, pruning, classes, read)
    begun = beginning.model(trained)
    check_lr_scales(begun.backbone, config.lr_scales, "trim.lr_scales")
    drawn = examples.draw(TYPICAL_TEXTS)
    classes.targets(drawn)  # refuses data that does not say what is right
    typical = units_of(begun.backbone, drawn.token_mask)
    plan = plan_target(target, begun, typical, examples, stage)
    task = beginning.task(begun, plan, typical)
    _log_guides(task.model, process)
    if inputs.engine.recompute:
        recompute_activations(task.model)
    facts = _log_facts(config, task, inputs, stage)  # counted before an engine may split the weights
    engine = _engine(config, settled, task.model, process)
    seed_everything(inputs.seed, 1001 + process.rank)
    sources = inputs.sources(config.splits)
    batches = training_batches(inputs, stage, batch, sources, reader, text=LEARNED[config.task], unit=config.unit)
    scored = validation_of(
        config, target, task, inputs, read, process, lambda: _plain(beginning, task, engine.weights())
    )
    counts = train(task, engine, batches, config.loop, stage, facts, scored)
    weights = engine.weights()
    if process.is_main:
        counts["training"] = _training(counts["samples"], facts, teacher)
        more = {"training": counts["training"]} | ({} if scored is None else {"validation": counts["best"]})
        counts |= _export(stage.folder / "export", beginning, task, plan, weights, tokenizer, more)
    engine.close()
    return counts


def _pretrained(
    config: TrimConfig,
    folder: Path,
    wanted: ModelConfig,
    tokenizer: Tokenizer,
    loader: LoaderConfig,
    process: Process,
) -> Backbone:
    """The backbone that pre-training left, at the size of pictures that is wanted here."""
    trained = load_backbone(folder, config.image_size)
    resized = check_fits(folder, wanted, tokenizer, loader, config.image_size)
    if resized and process.is_main:
        log.info("%s", resized)
    return trained


def _engine(config: TrimConfig, settled: EngineConfig, model: ClassificationModel, process: Process) -> Engine:
    """Backbone, head and trimmers, each at its own rate."""
    groups = [*scaled_groups(model.backbone, config.lr_scales), *split_decay(model.cls_head, config.head_scale)]
    if isinstance(model, RetrievalModel) and model.backbone.has_contrast:  # of other tasks nothing moves it
        groups = bounded_temperature(groups, model.backbone, scale_of("temp", config.lr_scales))
    if model.trimmers is not None:
        groups += split_decay(model.trimmers, config.trimmer_scale)
    batch = config.loop.global_batch
    if process.is_main and (said := config.optimizer.describe_lr(batch)):
        log.info("trim: %s", said)
    return build_engine(settled, config.optimizer.scaled(batch), model, groups, process)


def _plain(beginning: Beginning, task: ClassificationTask, weights: Weights) -> ClassificationModel:
    """The model as it would be exported with these weights."""
    described, shifts = _described(beginning, task), task.curriculum.shifts
    return exported_model(described, beginning.classes, weights, shifts, beginning.process.torch_device)


def _export(
    folder: Path,
    beginning: Beginning,
    task: ClassificationTask,
    plan: Plan,
    weights: Weights,
    tokenizer: Tokenizer,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the export, with `more` in its config.json; returns how the trimmers were settled before."""
    config, target, classes = beginning.config, beginning.target, beginning.classes
    described, counts = {**_described(beginning, task), **more}, dict[str, Any]()
    if not target.is_full:
        plain = _plain(beginning, task, weights)
        ProgressFile(folder.parent / "progress.json", 1.0, "share").show(1.0, "settling the speed-up", now=True)
        counts["calibration"] = asdict(_settle(plain, config, target, plan, beginning.examples))
        weights = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
    beside = {ANSWERS: list(classes.names)} if config.task in ANSWERING else {}
    export_weights(folder, weights, described, tokenizer, beside)
    return counts


def _classes(config: TrimConfig, inputs: Inputs, tokenizer: Tokenizer, process: Process) -> Classes:
    """What the head is to tell apart; an answer list is made from the training splits."""
    if config.task == "captioning":
        given = prompt_ids(tokenizer, config.captions.prompt).shape[1]
        check_prompt(config.captions, given, inputs.loader.max_tokens)
        return captions_of(config.captions, given)
    if config.task not in ANSWERING:
        return classes_of(config.task)
    folders = [ShardFolder(path, inputs.loader) for path, _ in inputs.sources(config.splits)]
    answers = make_answers(folders, config.answers, process)
    if config.task == "vqa_generative":
        return RankedAnswers.of(answers, tokenizer.as_written(), config.answers.candidates)
    return classes_of(config.task, answers)


def _log_guides(model: ClassificationModel, process: Process) -> None:
    """Only scores that look at the other modality are guided."""
    if process.is_main and isinstance(model.trimmers, Trimmers) and model.trimmers.policy.asks:
        log.info(
            "%s: %s",
            model.backbone.config.backbone,
            guides_in_words(model.backbone.schedule_for(model.trimmers.together), set(model.trimmers)),
        )


def _log_facts(config: TrimConfig, task: ClassificationTask, inputs: Inputs, stage: Stage) -> LogFacts:
    """What the log says besides losses; what is kept of tokens and heads is among the task's own numbers."""
    model = task.model
    scales = {**scales_that_count(model.backbone, config.lr_scales), "head": config.head_scale} | (
        {} if model.trimmers is None else {"trimmers": config.trimmer_scale}
    )
    if model.trimmers is not None:
        model.trimmers.set_share(task.curriculum.share)
    return LogFacts(
        macs=classification_macs(model, inputs.loader.max_tokens, task.config.distill_weight > 0),
        lr_scales=scales,
        peak_flops=device_peak(stage.process, inputs.engine, stage.tracker.peak_tflops),
        restarts=stage.tracker.restarts,
    )


def _examples(config: TrimConfig, inputs: Inputs, tokenizer: Tokenizer, together: int) -> Examples:
    draw, search = partial(_typical, config, inputs, tokenizer), config.captions

    def retell(model: ClassificationModel, batch: ImageTextBatch) -> ImageTextBatch:
        assert isinstance(model, CaptioningModel)
        return model.retold(batch, inputs.normalise(batch.pixels), search, tokenizer.sep_id)

    retells = retell if config.task == "captioning" else None
    return Examples(draw, inputs.normalise, together, config.latency, retells)


def _typical(config: TrimConfig, inputs: Inputs, tokenizer: Tokenizer, count: int) -> ImageTextBatch:
    """Training instances from all over the splits, of each by its weight, for what is taken from typical instances."""

    def some(split: str, part: int) -> ImageTextBatch:
        batches = eval_loader(
            inputs.data / split,
            text=LEARNED[config.task],
            unit="pair",
            config=inputs.loader,
            tokenizer=tokenizer,
            batch_size=part,
            process=Process(),
            limit=part,
            spread=True,
        )
        return next(iter(batches))

    slots_T = np.resize(deal(quotas(list(config.splits.values()))), count)
    parts = zip(config.splits, np.bincount(slots_T, minlength=len(config.splits)).tolist(), strict=True)
    return ImageTextBatch.joined([some(split, part) for split, part in parts if part])


def _described(beginning: Beginning, task: ClassificationTask) -> dict[str, Any]:
    """The export's config.json."""
    config, target = beginning.config, beginning.target
    model = task.model
    if model.trimmers is not None:
        model.trimmers.set_share(task.curriculum.share)
    method = describe_method(model, "full" if target.is_full else config.method)
    if isinstance(model.classes, Captions):
        method |= {"captions": asdict(config.captions), "given": model.classes.given}
    if isinstance(model.classes, RankedAnswers):
        method |= {"candidates": model.classes.candidates, "answers": AS_WRITTEN}
    if config.task in ANSWERING:
        method |= {"answer_list": describe_answers(model.classes.names)}
    return export_config(config.task, model.backbone.config, beginning.read, target=target.plain, **method)


def _training(samples: int, facts: LogFacts, full: Path | None) -> dict[str, Any]:
    """Samples and multiply-accumulates (10^9) of this fine-tuning, and of the full model's before it.

    The latter is 0 where none was needed, and None where an older export does not say.
    """
    assert facts.macs is not None
    of_full = 0.0 if full is None else read_json(full / "config.json").get("training", {}).get("gmacs")
    return {"samples": samples, "gmacs": samples * facts.macs / 1e9, "gmacs_of_full": of_full}


def _settle(model: ClassificationModel, config: TrimConfig, target: Target, plan: Plan, examples: Examples) -> Settled:
    """Settles the trimmers' shift on training's instances; while other processes wait."""
    count = config.smarttrim.calibrate
    if not count:
        return Settled(0.0, None, None, target.amount, None, target.unit)
    settled = Settler(model, target, examples.draw(count), examples).settle(plan)
    scores = isinstance(model.trimmers, Trimmers) and bool(model.trimmers.learned)
    if scores and settled.before is not None and abs(settled.before * plan.speed_up - 1) > _MOVED:
        _log_shift(settled.before, 1 / plan.speed_up, config.smarttrim.trimmers)
    return settled


def _log_shift(before: float, wanted: float, trimmers: TrimmerConfig) -> None:
    log.info(
        "without the noise of training the model cost %.2f of the full one where %.2f was wanted, so its scores were "
        "shifted: it decides otherwise than it was trained to%s",
        before,
        wanted,
        "; trim.smarttrim.trimmers.noise_fade ends the noise before training ends"
        if trimmers.noise and not trimmers.noise_fade
        else "",
    )
