"""The pre-training stage: shards -> ALBEF with ELIP -> checkpoint -> export."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from data_prep.errors import UserError
from data_prep.files import write_json
from pipeline.checkpoint import export_weights
from pipeline.data.loader import LoaderConfig, train_loader
from pipeline.engine import EngineConfig, OptimizerConfig, ParamGroup, build_engine, split_decay
from pipeline.models.build import build_model
from pipeline.models.config import TEMPERATURE_LIMITS, ModelConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.pruning.elip import ElipConfig
from pipeline.setup import Inputs, check_batch, check_sizes, export_config, seed_everything, sized_model
from pipeline.tasks.online import ObjectiveConfig
from pipeline.tasks.pretraining import Pretraining
from pipeline.train import LoopConfig, Stage, train
from pipeline.weights.init import InitConfig, initialise


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What pre-training does with the model and the data.

    Attributes:
        split: Split folder to stream.
        unit: ``image`` visits each image once an epoch with a caption drawn by seed, ``pair`` each pair.
        loop: Durations and learning-rate schedule.
        optimizer: AdamW.
        objectives: Constants of the losses.
        elip: Pruning of the vision tower.
        init: Weights to begin with; none for drawn ones. What was left out of them is written to init.json.
    """

    split: str = "train"
    unit: Literal["image", "pair"] = "image"
    loop: LoopConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    elip: ElipConfig = field(default_factory=ElipConfig)
    init: InitConfig | None = None


def pretrain(config: PretrainConfig, model_config: ModelConfig, inputs: Inputs, stage: Stage) -> dict[str, Any]:
    """Train and export; returns the counts of `train`.

    Raises:
        UserError: Sizes that do not fit together, before training starts.
    """
    check_pretrain(config, model_config, inputs.loader, inputs.engine, stage.process.world_size)
    device = stage.process.torch_device
    # The same on every rank: the momentum tower is copied before the engine evens out the weights.
    seed_everything(inputs.seed, 0)
    tokenizer = inputs.load_tokenizer()
    model = build_model(sized_model(model_config, tokenizer, inputs.loader))
    if config.init is not None:
        left_out = initialise(model, config.init)
        if stage.process.is_main:
            stage.folder.mkdir(parents=True, exist_ok=True)
            write_json(stage.folder / "init.json", {"left_out": left_out})
    model = model.to(device)
    task = Pretraining(
        model,
        config.objectives,
        config.elip,
        Vocabulary(mask=tokenizer.mask_id, size=tokenizer.vocab_size),
        inputs.normalise,
        torch.Generator().manual_seed(inputs.seed),
    )
    engine = build_engine(inputs.engine, config.optimizer, task.module, _param_groups(task, config), stage.process)
    seed_everything(inputs.seed, 1 + stage.process.rank)

    def batches(start: int, end: int) -> Any:
        return train_loader(
            [(inputs.data / config.split, 1.0)],
            text="captions",
            unit=config.unit,
            config=inputs.loader,
            tokenizer=tokenizer,
            seed=inputs.seed,
            global_batch=config.loop.global_batch,
            process=stage.process,
            steps=end,
            start_step=start,
        )

    counts = train(task, engine, batches, config.loop, stage)
    weights = engine.weights()
    if stage.process.is_main:
        plain = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        export_weights(stage.folder / "export", plain, export_config("backbone", model.config, inputs.loader))
    engine.close()
    return counts


def _param_groups(task: Pretraining, config: PretrainConfig) -> list[ParamGroup]:
    """Weights with decay, biases and norms without, the temperature at its own rate and between its limits."""
    if not task.model.has_contrast:
        return split_decay(task.module)
    temperature = task.model.temp
    groups = [
        replace(group, params=tuple(p for p in group.params if p is not temperature))
        for group in split_decay(task.module)
    ]
    own = ParamGroup(
        params=(temperature,), decay=False, lr_scale=config.objectives.temperature_lr, limits=TEMPERATURE_LIMITS
    )
    return [*groups, own]


def check_pretrain(
    config: PretrainConfig, model: ModelConfig, loader: LoaderConfig, engine: EngineConfig, processes: int
) -> None:
    """Refuses what cannot work, before anything is read or made.

    Args:
        config: The stage's own.
        model: Sizes; a vocabulary of 0 words is not looked at.
        loader: Image size, text length, streams.
        engine: How updates are computed.
        processes: How many train together.

    Raises:
        UserError: Naming the keys that do not fit together.
    """
    # Two pairs: each needs another one as its negative.
    check_batch("pretrain", config.loop.global_batch, processes, engine, loader, least=2)
    check_sizes(model, loader)
    check_guidance(config.elip, model)
    if config.init is not None:
        config.init.check()
    if engine.zero_stage == 3 and model.backbone in ("albef", "blip"):
        raise UserError("engine.zero_stage=3 splits the weights that the momentum tower must follow; use 0, 1 or 2")


def check_guidance(elip: ElipConfig, model: ModelConfig) -> None:
    """Refuses pruning that does not fit the vision tower or the text that guides it.

    Raises:
        UserError: Naming the keys that do not fit together.
    """
    elip.check(model.vision.depth, model.vision.patches)
    # CLIP's text comes back through the projection, whatever its width.
    if elip.guidance != "none" and model.backbone != "clip" and model.vision.width != model.text.width:
        raise UserError(
            f"model.text.width={model.text.width} must equal model.vision.width={model.vision.width}: the text's CLS "
            "guides the vision tower and there is no projection between them; set both to one value, or "
            "pretrain.elip.guidance to none"
        )
