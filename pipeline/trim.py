"""The trimming stage: a pre-trained backbone -> task head and trimmers, fine-tuned together -> export."""

from collections.abc import Iterable
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
from pipeline.exports import load_backbone
from pipeline.handoff import check_fits
from pipeline.limits import above_zero, weights_above_zero
from pipeline.log_facts import LogFacts, device_peak
from pipeline.measure.step_macs import statement_macs
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import recompute_activations
from pipeline.models.config import ModelConfig
from pipeline.process import Process
from pipeline.rng_state import seed_everything
from pipeline.setup import Inputs, check_batch, export_config
from pipeline.tasks.statements import SmartTrimConfig, StatementModel, StatementTask
from pipeline.train import LoopConfig, Stage, train
from pipeline.trimming.calibrate import Calibration, calibrate
from pipeline.trimming.cost import units_of

TYPICAL_TEXTS = 512


@dataclass(frozen=True, kw_only=True)
class TrimConfig:
    """Fine-tuning on a task for one or several speed-ups.

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
        smarttrim: Constants.
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
        above_zero(self, "trim", "head_scale", "trimmer_scale")


def trim(
    config: TrimConfig, target: float, backbone: Path, model_config: ModelConfig, inputs: Inputs, stage: Stage
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
    if inputs.engine.recompute:
        recompute_activations(model)
    task = StatementTask(model, inputs.normalise, target, config.smarttrim, typical)
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
        if target > 1:
            plain = _model(config, target, load_backbone(backbone))
            plain.load_state_dict(weights)
            counts["calibration"] = asdict(_settle(plain, task.curriculum.shift, config, target, inputs, process))
            weights = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
        _export(stage.folder / "export", model, weights, target, inputs)
    engine.close()
    return counts


def _model(config: TrimConfig, target: float, backbone: Backbone) -> StatementModel:
    return StatementModel(backbone, config.smarttrim.trimmers if target > 1 else None)


def _log_facts(config: TrimConfig, model: StatementModel, inputs: Inputs, stage: Stage) -> LogFacts:
    """What the log says besides losses; what is kept of tokens and heads is among the task's own numbers."""
    scales = {"head": config.head_scale} | ({} if model.trimmers is None else {"trimmers": config.trimmer_scale})
    return LogFacts(
        macs=statement_macs(model, inputs.loader.max_tokens, config.smarttrim.distill_weight > 0),
        lr_scales=scales,
        peak_flops=device_peak(stage.process, inputs.engine, stage.tracker.peak_tflops),
        restarts=stage.tracker.restarts,
    )


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
    """Puts training's shift into the trimmers and settles it on training's instances; while other processes wait."""
    assert model.trimmers is not None
    model.trimmers.shift(shift)
    count = config.smarttrim.calibrate
    if not count:
        return Calibration(0.0, None, None)
    model.eval().to(process.torch_device)
    batch, part = _typical(config, inputs, inputs.load_tokenizer(), count), config.loop.global_batch
    parts = [batch.part(slice(at, at + part)).to(process.torch_device) for at in range(0, len(batch), part)]

    def measure() -> float:
        shares = [model.cost_shares(inputs.normalise(p.pixels), p.token_ids, p.token_mask) for p in parts]
        return float(torch.cat(shares).double().mean())

    return calibrate(model.trimmers, measure, 1 / target)


def _export(folder: Path, model: StatementModel, weights: dict[str, Tensor], target: float, inputs: Inputs) -> None:
    trimmers = None if model.trimmers is None else asdict(model.trimmers.config)
    described = export_config("statement", model.backbone.config, inputs.loader, target=target, trimmers=trimmers)
    export_weights(folder, weights, described, inputs.load_tokenizer())
