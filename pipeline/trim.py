"""The trimming stage: a pre-trained backbone -> task head and trimmers, fine-tuned together -> export."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.text import Tokenizer
from pipeline.engine import OptimizerConfig, build_engine, split_decay
from pipeline.exports import load_backbone
from pipeline.handoff import check_fits
from pipeline.limits import above_zero, weights_above_zero
from pipeline.log_facts import LogFacts, device_peak
from pipeline.measure.latency import LatencyConfig
from pipeline.measure.step_macs import statement_macs
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import recompute_activations
from pipeline.models.config import ModelConfig
from pipeline.process import Process
from pipeline.rng_state import seed_everything
from pipeline.setup import Inputs, check_batch, export_config
from pipeline.tasks.statements import SmartTrimConfig, StatementModel, StatementTask
from pipeline.train import LoopConfig, Stage, train
from pipeline.trim_plan import Examples, Plan, check_before, plan_target
from pipeline.trim_settle import Settled, Settler
from pipeline.trimming.cost import units_of
from pipeline.trimming.guides import guides_in_words
from pipeline.trimming.target import Target

log = logging.getLogger(__name__)

TYPICAL_TEXTS = 512


@dataclass(frozen=True, kw_only=True)
class TrimConfig:
    """Fine-tuning on a task for one or several speed-ups.

    Attributes:
        task: ``statement``: is a sentence true of a picture?
        splits: Split folders to train on, and the weight of each in every batch.
        targets: Wanted costs: ``2.0x`` (or 2.0), a ratio of multiply-accumulates; ``12 GFLOPs`` (or ``12 GMACs``, the
            same: a multiplication with its addition counts as one); ``35 ms``, one instance at a time on the machine
            that trains. 1.0 is the full model.
        max_tokens: Length of statements in training, where they are shorter than what the loader pads captions to;
            None for the loader's. Longer ones are cut.
        loop: Durations and learning-rate schedule.
        optimizer: AdamW; the rate of the backbone.
        head_scale: Learning rate of the head over the backbone's.
        trimmer_scale: Learning rate of the trimmers over the backbone's: they begin far on the side of keeping.
        smarttrim: Constants.
        latency: How milliseconds are taken, where a target is a time.
    """

    task: Literal["statement"] = "statement"
    splits: dict[str, float] = field(default_factory=lambda: {"train": 1.0})
    targets: tuple[float | str, ...] = (1.0, 2.0)
    max_tokens: int | None = None
    loop: LoopConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    head_scale: float = 1.0
    trimmer_scale: float = 1.0
    smarttrim: SmartTrimConfig = field(default_factory=SmartTrimConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        weights_above_zero(self.splits, "trim.splits")
        names = [Target.parse(target).name for target in self.targets]
        if len(set(names)) != len(names):
            raise UserError(f"trim.targets={list(self.targets)} must be different from each other; leave one out")
        above_zero(self, "trim", "head_scale", "trimmer_scale")


def check_targets(config: TrimConfig, backbone: Backbone, max_tokens: int) -> None:
    """Refuses, before anything runs, targets that no text can reach; times are checked when the stage begins.

    Args:
        config: Its targets.
        backbone: May be without memory for its weights.
        max_tokens: Of the loader.

    Raises:
        UserError: Naming the highest target.
    """
    with next(backbone.parameters()).device:
        model = StatementModel(backbone, config.smarttrim.trimmers)
    longest = max_tokens if config.max_tokens is None else config.max_tokens
    check_before([Target.parse(target) for target in config.targets], model, longest)


def trim(
    config: TrimConfig, target: Target, backbone: Path, model_config: ModelConfig, inputs: Inputs, stage: Stage
) -> dict[str, Any]:
    """Fine-tune and export; returns the counts of `train`.

    Args:
        config: Of all targets.
        target: The one to train here.
        backbone: Export folder of a pre-training stage.
        model_config: Sizes that its model is to have.
        inputs: Data, tokenizer, loader, engine, seed.
        stage: Folder, process, budget.

    Raises:
        UserError: The target cannot be reached, or the checkpoint does not fit the run.
    """
    process = stage.process
    if config.max_tokens is not None:
        inputs = replace(inputs, loader=replace(inputs.loader, max_tokens=config.max_tokens))
    settled = check_batch("trim", config.loop.global_batch, process.world_size, inputs.engine, inputs.loader)
    seed_everything(inputs.seed, 1000)
    tokenizer = inputs.load_tokenizer()
    trained = load_backbone(backbone)
    check_fits(backbone, trained.config, model_config, tokenizer, inputs.loader)
    model = _model(config, target, trained).to(process.torch_device)
    typical = units_of(model.backbone, _typical(config, inputs, tokenizer, TYPICAL_TEXTS).token_mask)
    if process.is_main and model.trimmers is not None:
        log.info("%s: %s", model.backbone.config.backbone, guides_in_words(model.backbone.schedule))
    examples = _examples(config, inputs, tokenizer)
    plan = plan_target(target, model, typical, examples, stage)
    if inputs.engine.recompute:
        recompute_activations(model)
    task = StatementTask(model, inputs.normalise, plan.speed_up, config.smarttrim, typical)
    groups = [*split_decay(model.backbone), *split_decay(model.cls_head, config.head_scale)]
    if model.trimmers is not None:
        groups += split_decay(model.trimmers, config.trimmer_scale)
    facts = _log_facts(config, model, inputs, stage)  # counted before an engine may split the weights
    engine = build_engine(settled, config.optimizer, model, groups, process)
    seed_everything(inputs.seed, 1001 + process.rank)

    def batches(start: int, end: int) -> Iterable[ImageTextBatch]:
        return train_loader(
            inputs.sources(config.splits),
            text="statements",
            unit="pair",
            config=inputs.loader,
            tokenizer=tokenizer,
            seed=inputs.seed,
            global_batch=config.loop.global_batch,
            process=process,
            steps=end,
            start_step=start,
            quarantine=stage.folder / QUARANTINE,
        )

    counts = train(task, engine, batches, config.loop, stage, facts)
    weights = engine.weights()
    if process.is_main:
        if not target.is_full:
            plain = _model(config, target, load_backbone(backbone))
            plain.load_state_dict(weights)
            plain.to(process.torch_device).eval()
            counts["calibration"] = asdict(_settle(plain, task.curriculum.shift, config, target, plan, examples))
            weights = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
        _export(stage.folder / "export", model, weights, target, inputs)
    engine.close()
    return counts


def _model(config: TrimConfig, target: Target, backbone: Backbone) -> StatementModel:
    return StatementModel(backbone, None if target.is_full else config.smarttrim.trimmers)


def _log_facts(config: TrimConfig, model: StatementModel, inputs: Inputs, stage: Stage) -> LogFacts:
    """What the log says besides losses; what is kept of tokens and heads is among the task's own numbers."""
    scales = {"head": config.head_scale} | ({} if model.trimmers is None else {"trimmers": config.trimmer_scale})
    return LogFacts(
        macs=statement_macs(model, inputs.loader.max_tokens, config.smarttrim.distill_weight > 0),
        lr_scales=scales,
        peak_flops=device_peak(stage.process, inputs.engine, stage.tracker.peak_tflops),
        restarts=stage.tracker.restarts,
    )


def _examples(config: TrimConfig, inputs: Inputs, tokenizer: Tokenizer) -> Examples:
    draw = partial(_typical, config, inputs, tokenizer)
    return Examples(draw, inputs.normalise, config.loop.global_batch, config.latency)


def _typical(config: TrimConfig, inputs: Inputs, tokenizer: Tokenizer, count: int) -> ImageTextBatch:
    """Training statements from all over the first split, for what is taken from typical instances."""
    batches = eval_loader(
        inputs.data / next(iter(config.splits)),
        text="statements",
        unit="pair",
        config=inputs.loader,
        tokenizer=tokenizer,
        batch_size=count,
        process=Process(),
        limit=count,
        spread=True,
    )
    return next(iter(batches))


def _settle(
    model: StatementModel, shift: float, config: TrimConfig, target: Target, plan: Plan, examples: Examples
) -> Settled:
    """Puts training's shift into the trimmers and settles it on training's instances; while other processes wait."""
    assert model.trimmers is not None
    model.trimmers.shift(shift)
    count = config.smarttrim.calibrate
    if not count:
        return Settled(0.0, None, None, target.amount, None, target.unit)
    return Settler(model, target, examples.draw(count), examples).settle(plan)


def _export(folder: Path, model: StatementModel, weights: dict[str, Tensor], target: Target, inputs: Inputs) -> None:
    trimmers = None if model.trimmers is None else asdict(model.trimmers.config)
    described = export_config("statement", model.backbone.config, inputs.loader, target=target.plain, trimmers=trimmers)
    export_weights(folder, weights, described, inputs.load_tokenizer())
