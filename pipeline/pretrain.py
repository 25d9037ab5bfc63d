"""The pre-training stage: shards -> a backbone with pruning -> checkpoints -> export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from data_prep.errors import UserError
from data_prep.files import write_json
from pipeline.checkpoint import export_weights
from pipeline.data.loader import LoaderConfig
from pipeline.data.sources import describe_mix, weigh_sources
from pipeline.data.text import Tokenizer
from pipeline.engine import EngineConfig, OptimizerConfig, ParamGroup, build_engine
from pipeline.limits import weights_above_zero
from pipeline.log_facts import LogFacts, device_peak, kept_tokens
from pipeline.loop_config import LoopConfig
from pipeline.measure.step_macs import pretraining_macs
from pipeline.measure.training_macs import StepSizes
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import recompute_activations
from pipeline.models.build import build_model
from pipeline.models.compiling import compile_blocks
from pipeline.models.config import ModelConfig
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.param_groups import bounded_temperature, check_lr_scales, check_scales, scaled_groups
from pipeline.pruning.config import PruningConfig
from pipeline.rng_state import seed_everything
from pipeline.setup import Inputs, check_batch, check_sizes, describe_update, export_config, sized_model
from pipeline.stage import Batches, Stage
from pipeline.tasks.pretraining import Pretraining
from pipeline.tasks.task import without_prefix
from pipeline.train import train
from pipeline.training_data import training_batches
from pipeline.weights.init import InitConfig, initialise


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What pre-training does with the model and the data.

    Attributes:
        splits: Split folders to train on, and the weight of each in every batch.
        mix: What the weights are: ``weights`` are shares of every batch, ``epochs`` say how often each split is visited
            while one with 1 is visited once, whatever their sizes. All 1 is the same as one large data set.
        unit: ``image`` visits each image once an epoch with a caption drawn by seed, ``pair`` each pair.
        loop: Durations and learning-rate schedule.
        optimizer: AdamW.
        lr_scales: Learning rates of parts over the optimizer's, by the beginning of their parameters' names: METER's
            fusion layers learn five times as fast as its encoders.
        objectives: Constants of the losses.
        pruning: Which method leaves out vision tokens, and how many.
        init: Weights to begin with; none for drawn ones. What was left out of them is written to init.json.
    """

    splits: dict[str, float] = field(default_factory=lambda: {"train": 1.0})
    mix: Literal["weights", "epochs"] = "weights"
    unit: Literal["image", "pair"] = "image"
    loop: LoopConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scales: dict[str, float] = field(default_factory=dict)
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    init: InitConfig | None = None

    def __post_init__(self) -> None:
        weights_above_zero(self.splits, "pretrain.splits")
        check_scales("pretrain.lr_scales", self.lr_scales)


@dataclass(frozen=True)
class Ready:
    """A pre-training that may begin: all of it but the engine.

    Attributes:
        task: The model with its losses.
        groups: What the optimizer steps, and how fast.
        batches: The stream, from any step on.
        facts: What the log says besides losses.
        sources: Split folders with their weights in every batch.
        tokenizer: Of the texts.
    """

    task: Pretraining
    groups: list[ParamGroup]
    batches: Batches
    facts: LogFacts
    sources: list[tuple[Path, float]]
    tokenizer: Tokenizer


def make_ready(config: PretrainConfig, model_config: ModelConfig, inputs: Inputs, stage: Stage) -> Ready:
    """Makes model, task and stream; the same weights on every process."""
    # The same on every rank: the momentum tower is copied before the engine evens out the weights.
    seed_everything(inputs.seed, 0)
    tokenizer = inputs.load_tokenizer()
    model = build_model(sized_model(model_config, tokenizer, inputs.loader))
    check_lr_scales(model, config.lr_scales)
    if config.init is not None:
        left_out = initialise(model, config.init)
        if stage.process.is_main:
            stage.folder.mkdir(parents=True, exist_ok=True)
            write_json(stage.folder / "init.json", {"left_out": left_out})
    model = model.to(stage.process.torch_device)
    task = Pretraining(
        model,
        config.objectives,
        config.pruning,
        Vocabulary(mask=tokenizer.mask_id, size=tokenizer.vocab_size),
        inputs.normalise,
        torch.Generator().manual_seed(inputs.seed),
    )
    _prepare_towers(task, inputs.engine)
    sources = weigh_sources(inputs.sources(config.splits), config.mix, "captions", config.unit)
    batch = config.loop.global_batch
    return Ready(
        task=task,
        groups=_param_groups(model, config),
        batches=training_batches(inputs, stage, batch, sources, tokenizer, text="captions", unit=config.unit),
        facts=_log_facts(config, model, inputs, stage, tokenizer),  # counted before an engine may split the weights
        sources=sources,
        tokenizer=tokenizer,
    )


def pretrain(config: PretrainConfig, model_config: ModelConfig, inputs: Inputs, stage: Stage) -> dict[str, Any]:
    """Train and export; returns the counts of `train`.

    Raises:
        UserError: Sizes that do not fit together, before training starts.
    """
    settled = check_pretrain(config, model_config, inputs.loader, inputs.engine, stage.process.world_size)
    update = describe_pretrain_update(config, model_config, settled, stage.process.world_size)
    ready = make_ready(config, model_config, inputs, stage)
    engine = build_engine(
        settled, config.optimizer.scaled(config.loop.global_batch), ready.task.module, ready.groups, stage.process
    )
    seed_everything(inputs.seed, 1 + stage.process.rank)
    counts = train(ready.task, engine, ready.batches, config.loop, stage, ready.facts)
    weights = engine.weights()
    if stage.process.is_main:
        tokenizer = ready.tokenizer
        plain = without_prefix("model", weights)
        tokens = {"pad": tokenizer.pad_id, "begin": tokenizer.cls_id, "end": tokenizer.sep_id}
        described = export_config(
            "backbone", ready.task.model.config, inputs.loader, tokens=tokens, tokenizer=tokenizer.digest
        )
        export_weights(stage.folder / "export", plain, described, tokenizer)
    engine.close()
    return counts | {
        "update": update,
        "mix": describe_mix(list(config.splits), ready.sources, counts["samples"], "captions", config.unit),
    }


def describe_pretrain_update(config: PretrainConfig, model: ModelConfig, engine: EngineConfig, processes: int) -> str:
    """One line on how an update is dealt out, what that does to the negatives, and a scaled learning rate."""
    batch = config.loop.global_batch
    effects = [negatives_of_parts(config, model, engine, processes), config.optimizer.describe_lr(batch)]
    return describe_update(batch, processes, engine.accumulation, effects)


def negatives_of_parts(config: PretrainConfig, model: ModelConfig, engine: EngineConfig, processes: int) -> str:
    """What accumulation does to the negatives of contrast and matching; empty without accumulation."""
    if engine.accumulation == 1:
        return ""
    batch, effects = config.loop.global_batch, []
    together = batch // engine.accumulation
    if model.backbone != "meter":
        queue = f" (and {config.objectives.queue} of the queue)" if model.backbone in ("albef", "blip") else ""
        if config.objectives.contrast_cache:
            effects.append(f"contrast is among all {batch} pairs{queue}, for which each part is encoded twice")
        else:
            effects.append(
                f"contrast is among the {together} pairs of a part over all workers{queue}, not among {batch}"
            )
    if model.backbone != "clip":
        among = together if config.objectives.negatives == "global" else together // processes
        effects.append(f"matching draws negatives from {among} pairs")
    return "; ".join(effects)


def _log_facts(config: PretrainConfig, model: Backbone, inputs: Inputs, stage: Stage, tokenizer: Tokenizer) -> LogFacts:
    """What the log says besides losses; texts count as long as they are padded to."""
    length, tower = inputs.loader.max_tokens, model.config.vision
    masked = config.objectives.mask_share * (length - 1 - tokenizer.end)  # neither [CLS] nor [SEP]
    words = length - 1.0 if model.config.backbone == "blip" else masked
    keys = config.loop.global_batch + (config.objectives.queue if model.averaged else 0)
    scales = {**config.lr_scales, **({"temperature": config.objectives.temperature_lr} if model.has_contrast else {})}
    return LogFacts(
        macs=pretraining_macs(model, config.pruning, StepSizes(text_length=length, keys=keys, words=words)).step,
        lr_scales=scales,
        tokens=kept_tokens(config.pruning, tower.depth, tower.patches),
        peak_flops=device_peak(stage.process, inputs.engine, stage.tracker.peak_tflops),
        restarts=stage.tracker.restarts,
    )


def _prepare_towers(task: Pretraining, engine: EngineConfig) -> None:
    """Recomputation and compilation as the engine's configuration asks for them."""
    if engine.recompute:
        recompute_activations(task.model)
    if engine.compile:
        compile_blocks(task.module)  # the momentum tower is part of it


def _param_groups(model: Backbone, config: PretrainConfig) -> list[ParamGroup]:
    """Each part at its own rate; the temperature between its limits."""
    groups = scaled_groups(model, config.lr_scales)
    return bounded_temperature(groups, model, config.objectives.temperature_lr) if model.has_contrast else groups


def check_pretrain(
    config: PretrainConfig, model: ModelConfig, loader: LoaderConfig, engine: EngineConfig, processes: int
) -> EngineConfig:
    """Refuses what cannot work, before anything is read or made.

    Args:
        config: The stage's own.
        model: Sizes; a vocabulary of 0 words is not looked at.
        loader: Image size, text length, streams.
        engine: How updates are computed.
        processes: How many train together.

    Returns:
        The engine's configuration with the number of accumulated parts in it.

    Raises:
        UserError: Naming the keys that do not fit together.
    """
    # Two pairs: each needs another one as its negative.
    settled = check_batch("pretrain", config.loop.global_batch, processes, engine, loader, least=2)
    check_sizes(model, loader)
    check_guidance(config.pruning, model)
    if config.objectives.contrast_cache:
        check_cache(model, settled)
    if config.init is not None:
        config.init.check()
    return settled


_CONTRASTING = ("albef", "blip", "clip")


def check_cache(model: ModelConfig, engine: EngineConfig) -> None:
    """Refuses a cached contrast where there is no contrast, or where its first pass would not be that of the second.

    Raises:
        UserError: Naming the keys that do not fit together.
    """
    key = "pretrain.objectives.contrast_cache=true"
    if model.backbone not in _CONTRASTING:
        raise UserError(
            f"{key} is for model.backbone {', '.join(_CONTRASTING)}, not for {model.backbone}; leave it out"
        )
    if engine.name == "deepspeed" and engine.zero_stage == 3 and engine.accumulation > 1:
        # How it gathers weights has not been tried with a forward that no backward follows.
        raise UserError(f"{key} does not go with engine.zero_stage=3; set --engine.zero_stage 2")


# METER prunes each pair by the text that it fuses, so it has no choice; only ALBEF masks words and contrasts besides.
_GUIDED = {"own": ("albef", "blip", "meter", "clip"), "masked": ("albef",), "other": ("albef", "blip", "clip")}


def check_guidance(pruning: PruningConfig, model: ModelConfig) -> None:
    """Refuses pruning that does not fit the vision tower or the text that guides it.

    Raises:
        UserError: Naming the keys that do not fit together.
    """
    pruning.check(model.vision.depth, model.vision.patches)
    if pruning.chosen is pruning.elip and model.backbone not in _GUIDED[pruning.elip.sentence]:
        raise UserError(
            f"pretrain.pruning.elip.sentence={pruning.elip.sentence} is for model.backbone "
            f"{', '.join(_GUIDED[pruning.elip.sentence])}, not for {model.backbone}; set it to own"
        )
    # CLIP's text comes back through the projection, whatever its width.
    guided = pruning.chosen is pruning.elip and model.backbone != "clip"
    if guided and model.vision.width != model.text.width:
        raise UserError(
            f"model.text.width={model.text.width} must equal model.vision.width={model.vision.width}: the text's CLS "
            "guides the vision tower and there is no projection between them; set both to one value, or "
            "pretrain.pruning.method to one that no text guides"
        )
