"""The trimming stage: a pre-trained backbone -> task head and trimmers, fine-tuned together -> export.

Baselines take SmartTrim's place here, in the same loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.text import Tokenizer
from pipeline.engine import OptimizerConfig, build_engine, split_decay
from pipeline.exports import build_statement_model, describe_method, load_backbone, load_statement_model
from pipeline.handoff import check_fits
from pipeline.limits import above_zero, weights_above_zero
from pipeline.log_facts import LogFacts, device_peak
from pipeline.measure.step_macs import statement_macs
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import recompute_activations
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.process import Process
from pipeline.rng_state import seed_everything
from pipeline.setup import Inputs, check_batch, export_config
from pipeline.tasks.ftkd import TaughtStatements
from pipeline.tasks.statements import SmartTrimConfig, StatementModel, StatementTask
from pipeline.train import LoopConfig, Stage, train
from pipeline.trimming.calibrate import Calibration, calibrate
from pipeline.trimming.cost import Units, units_of
from pipeline.trimming.ftkd import LayerMap, begin_student, choose_layers
from pipeline.trimming.importance import head_importance, order_heads
from pipeline.trimming.methods import MethodsConfig
from pipeline.trimming.trimmers import Trimmers

TYPICAL_TEXTS = 512


@dataclass(frozen=True, kw_only=True)
class TrimConfig(MethodsConfig):
    """Fine-tuning on a task for one or several speed-ups, with SmartTrim or a baseline (`MethodsConfig`).

    Attributes:
        task: ``statement``: is a sentence true of a picture?
        splits: Split folders to train on, and the weight of each in every batch.
        targets: Wanted ratios of multiply-accumulates; 1.0 is the full model.
        max_tokens: Length of statements in training, where they are shorter than what the loader pads captions to;
            None for the loader's. Longer ones are cut.
        loop: Durations and learning-rate schedule.
        optimizer: AdamW; the rate of the backbone.
        head_scale: Learning rate of the head over the backbone's.
        trimmer_scale: Learning rate of the trimmers over the backbone's: they begin far on the side of keeping.
        smarttrim: Constants; its curriculum and self-distillation hold for the baselines too, where they have none of
            their own.
    """

    task: Literal["statement"] = "statement"
    splits: dict[str, float] = field(default_factory=lambda: {"train": 1.0})
    targets: tuple[float, ...] = (1.0, 2.0)
    max_tokens: int | None = None
    loop: LoopConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    head_scale: float = 1.0
    trimmer_scale: float = 1.0
    smarttrim: SmartTrimConfig = field(default_factory=SmartTrimConfig)

    def __post_init__(self) -> None:
        weights_above_zero(self.splits, "trim.splits")
        if any(target < 1 for target in self.targets) or len(set(self.targets)) != len(self.targets):
            raise UserError(
                f"trim.targets={list(self.targets)} must be different speed-ups of at least 1.0, such as [1.0, 2.0]"
            )
        if self.needs_teacher and 1.0 not in self.targets:
            raise UserError(
                f"trim.method={self.method} looks at the fine-tuned full model: trim.targets={list(self.targets)} must "
                "hold 1.0"
            )
        above_zero(self, "trim", "head_scale", "trimmer_scale")


def trim(
    config: TrimConfig,
    target: float,
    backbone: Path,
    model_config: ModelConfig,
    inputs: Inputs,
    stage: Stage,
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Fine-tune and export; returns the counts of `train`.

    Args:
        config: Of all targets.
        target: The one to train here.
        backbone: Export folder of a pre-training stage.
        model_config: Sizes that its model is to have.
        inputs: Data, tokenizer, loader, engine, seed.
        stage: Folder, process, budget.
        teacher: Export folder of the fine-tuned full model, for methods that look at it.

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
    task = _task(config, target, trained, teacher, inputs, process)
    model = task.model
    if inputs.engine.recompute:
        recompute_activations(model)
    groups = [*split_decay(model.backbone), *split_decay(model.cls_head, config.head_scale)]
    if model.trimmers is not None:
        groups += split_decay(model.trimmers, config.trimmer_scale)
    facts = _log_facts(config, task, inputs, stage)  # counted before an engine may split the weights
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
        name = config.method if target > 1 else "full"
        if model.trimmers is not None:
            model.trimmers.set_share(task.curriculum.share)
        described = export_config(
            "statement", model.backbone.config, inputs.loader, target=target, **describe_method(model, name)
        )
        if target > 1:
            plain = build_statement_model(described)
            plain.load_state_dict(weights)
            counts["calibration"] = asdict(_settle(plain, task.curriculum.shift, config, target, inputs, process))
            weights = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
        export_weights(stage.folder / "export", weights, described, tokenizer)
    engine.close()
    return counts


def _task(
    config: TrimConfig, target: float, trained: Backbone, teacher: Path | None, inputs: Inputs, process: Process
) -> StatementTask:
    """What is trained, on the device: the full model, a model with what trims it, or a student."""
    device = process.torch_device
    method = config if target > 1 else None
    if method is not None and method.method == "ftkd":
        return _student_task(config, target, _teacher(teacher), inputs, process)
    trimmers = None if method is None else method.reduction or config.smarttrim.trimmers
    model = StatementModel(trained, trimmers, config.policy).to(device)
    typical = _typical_units(config, inputs, model)
    if isinstance(model.trimmers, Trimmers) and model.trimmers.policy.heads == "ranked":
        _order_heads(config, model.trimmers, teacher, inputs, process)
    smarttrim = config.smarttrim
    if config.distill_weight is not None:
        smarttrim = replace(smarttrim, distill_weight=config.distill_weight)
    return StatementTask(model, inputs.normalise, target, smarttrim, typical)


def _student_task(
    config: TrimConfig, target: float, teacher: StatementModel, inputs: Inputs, process: Process
) -> TaughtStatements:
    """A student of the full model's fine-tuned one, with as many layers as the target allows."""
    typical = _typical_units(config, inputs, teacher)
    whole = teacher.backbone.config
    layers = choose_layers(teacher.cost_model(), typical, target)
    student = StatementModel(build_model(layers.cut(whole)), None, whole=whole)
    begin_student(student, teacher, LayerMap(student.backbone, teacher.backbone))
    device = process.torch_device
    return TaughtStatements(student.to(device), teacher.to(device), inputs.normalise, target, config.ftkd, typical)


def _teacher(folder: Path | None) -> StatementModel:
    assert folder is not None, "a method that looks at the full model is given it"
    return load_statement_model(folder)[0]


def _order_heads(
    config: TrimConfig, trimmers: Trimmers, teacher: Path | None, inputs: Inputs, process: Process
) -> None:
    """Settles which heads go first, the same on every process."""
    assert config.method in ("head_random", "grad_layer", "grad_all")
    importance: dict[str, Tensor] = {}
    if config.needs_teacher:
        model = _teacher(teacher).to(process.torch_device)
        batch = _typical(config, inputs, inputs.load_tokenizer(), config.heads.instances)
        parts = _parts(batch, config.loop.global_batch, process)
        importance = head_importance(model, ((inputs.normalise(p.pixels), p.token_ids, p.token_mask) for p in parts))
    order_heads(trimmers, config.method, inputs.seed, importance)


def _log_facts(config: TrimConfig, task: StatementTask, inputs: Inputs, stage: Stage) -> LogFacts:
    """What the log says besides losses; what is kept of tokens and heads is among the task's own numbers."""
    model = task.model
    scales = {"head": config.head_scale} | ({} if model.trimmers is None else {"trimmers": config.trimmer_scale})
    if model.trimmers is not None:
        model.trimmers.set_share(task.curriculum.share)
    return LogFacts(
        macs=statement_macs(model, inputs.loader.max_tokens, task.config.distill_weight > 0),
        lr_scales=scales,
        peak_flops=device_peak(stage.process, inputs.engine, stage.tracker.peak_tflops),
        restarts=stage.tracker.restarts,
    )


def _typical_units(config: TrimConfig, inputs: Inputs, model: StatementModel) -> Units:
    """What typical instances are made of."""
    return units_of(model.backbone, _typical(config, inputs, inputs.load_tokenizer(), TYPICAL_TEXTS).token_mask)


def _parts(batch: ImageTextBatch, size: int, process: Process) -> Iterator[ImageTextBatch]:
    for at in range(0, len(batch), size):
        yield batch.part(slice(at, at + size)).to(process.torch_device)


def _typical(config: TrimConfig, inputs: Inputs, tokenizer: Tokenizer, count: int) -> ImageTextBatch:
    """Some training statements (of the first split), for what is taken from typical instances."""
    batches = eval_loader(
        inputs.data / next(iter(config.splits)),
        text="statements",
        unit="pair",
        config=inputs.loader,
        tokenizer=tokenizer,
        batch_size=count,
        process=Process(),
        limit=count,
    )
    return next(iter(batches))


def _settle(
    model: StatementModel, shift: float, config: TrimConfig, target: float, inputs: Inputs, process: Process
) -> Calibration:
    """Measures the cost on training's instances, while others wait; what is learned is settled to the target."""
    count = config.smarttrim.calibrate
    learned = model.trimmers if isinstance(model.trimmers, Trimmers) and model.trimmers.learned else None
    if learned is not None:
        learned.shift(shift)
    if not count:
        return Calibration(0.0, None, None)
    model.eval().to(process.torch_device)
    parts = list(_parts(_typical(config, inputs, inputs.load_tokenizer(), count), config.loop.global_batch, process))

    def measure() -> float:
        shares = [model.cost_shares(inputs.normalise(p.pixels), p.token_ids, p.token_mask) for p in parts]
        return float(torch.cat(shares).double().mean())

    if learned is None:
        found = measure()
        return Calibration(0.0, found, found)
    return calibrate(learned, measure, 1 / target)
