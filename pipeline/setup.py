"""Small things that stages share before training starts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.loader import LoaderConfig
from pipeline.data.storage import STORAGE_KEYS
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import normalise
from pipeline.engine import EngineConfig
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.config import ModelConfig
from pipeline.models.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every training stage is given besides its own config.

    Attributes:
        data: Folder of the splits.
        tokenizer: Folder of the tokenizer.
        loader: Image size, augmentation, order, workers.
        engine: How updates are computed.
        seed: Of the run.
    """

    data: Path
    tokenizer: Path
    loader: LoaderConfig
    engine: EngineConfig
    seed: int

    def sources(self, splits: Mapping[str, float]) -> list[tuple[Path, float]]:
        """Folders of splits with their weights, for a loader."""
        return [(self.data / name, weight) for name, weight in splits.items()]

    def sized_for(self, model: ModelConfig) -> "Inputs":
        """The same with pictures of a model's size, which fine-tuning may have changed."""
        return replace(self, loader=replace(self.loader, height=model.vision.height, width=model.vision.width_px))

    def of_export(self, described: Mapping[str, Any]) -> "Inputs":
        """The same as an export reads it wherever it is used: pictures of its size, texts of its length.

        Args:
            described: Its config.json.
        """
        read = {name: described["loader"][name] for name in ("height", "width", "max_tokens")}
        return replace(self, loader=replace(self.loader, **read))

    def load_tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return Tokenizer.load(self.tokenizer)

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """uint8 pixels -> the model's input."""
        return partial(normalise, mean=self.loader.mean, std=self.loader.std)


def check_batch(
    stage: str, batch: int, processes: int, engine: EngineConfig, loader: LoaderConfig, least: int = 1
) -> EngineConfig:
    """Refuses a global batch that does not divide among processes, accumulated parts and streams.

    Args:
        stage: Section of the configuration that the batch belongs to.
        batch: Samples of an update over all processes.
        processes: How many train together.
        engine: Says how many parts a process makes of its own samples.
        loader: Says how many streams the batch is read from.
        least: Samples that each part must have.

    Returns:
        The engine's configuration with the number of accumulated parts in it.

    Raises:
        UserError: With a batch that would do.
    """
    unit = math.lcm(processes * engine.accumulation, loader.streams)
    fewest = least * processes * engine.accumulation
    if batch % unit or batch < fewest:
        fix = max(-(-fewest // unit), round(batch / unit)) * unit
        raise UserError(
            f"{stage}.loop.global_batch={batch} must be a multiple of {unit}, for {processes} workers x "
            f"{engine.accumulation} accumulated parts and {loader.streams} streams (loader.streams), with at least "
            f"{least} samples for each part; try --{stage}.loop.global_batch {fix}"
        )
    return engine.resolved(stage, batch, processes, least)


def describe_update(batch: int, processes: int, accumulation: int, effects: Sequence[str] = ()) -> str:
    """One line on how the samples of an update are dealt out.

    Args:
        batch: Samples of an update over all processes.
        processes: How many train together.
        accumulation: Parts that each makes of its own.
        effects: What that means for losses and learning rate; empty ones are left out.
    """
    parts = f" x {accumulation} parts" if accumulation > 1 else ""
    line = f"an update: {batch} samples = {processes} workers{parts} x {batch // processes // accumulation}"
    return "; ".join([line, *filter(None, effects)])


def check_sizes(config: ModelConfig, loader: LoaderConfig) -> None:
    """Refuses a model of another picture size than the loader's, or of too short texts.

    Raises:
        UserError: Naming both sizes.
    """
    vision, text = config.vision, config.text
    if (vision.height, vision.width_px) != (loader.height, loader.width):
        raise UserError(
            f"model.vision is made for {vision.height} x {vision.width_px} pixels, the loader gives "
            f"{loader.height} x {loader.width}; set model.vision.height and width_px to the loader's"
        )
    if loader.max_tokens > text.longest:
        raise UserError(
            f"loader.max_tokens={loader.max_tokens} is more than the {text.longest} that "
            f"model.text.max_positions={text.max_positions} has room for; make one larger or the other smaller"
        )


def check_room(config: TextConfig, tokens: int, key: str) -> None:
    """Refuses texts that are longer than a model's.

    Raises:
        UserError: Naming both lengths.
    """
    if tokens > config.longest:
        raise UserError(
            f"{key}={tokens} is more than the {config.longest} tokens that the model's text.max_positions="
            f"{config.max_positions} has room for; make it smaller"
        )


def check_padding(config: ModelConfig, pad_id: int) -> None:
    """Refuses a model that counts positions from another padding than the tokenizer's.

    Raises:
        UserError: Naming both.
    """
    if config.text.pad_id not in (None, pad_id):
        raise UserError(
            f"model.text.pad_id={config.text.pad_id} is not the tokenizer's padding, {pad_id}; give the tokenizer that "
            f"the model is made for with --tokenizer.path DIR, or set --model.text.pad_id {pad_id}"
        )


def sized_model(config: ModelConfig, tokenizer: Tokenizer, loader: LoaderConfig) -> ModelConfig:
    """The model's sizes with the tokenizer's vocabulary put in, checked against the data's sizes.

    Raises:
        UserError: Image size, text length or vocabulary do not fit.
    """
    check_sizes(config, loader)
    text = config.text
    words = tokenizer.vocab_size + (EXTRA_WORDS if config.backbone == "blip" else 0)
    if text.vocab_size and text.vocab_size < words:
        raise UserError(
            f"model.text.vocab_size={text.vocab_size} is less than the {words} of the tokenizer and the model; "
            "set it to 0 to take as many as they need"
        )
    check_padding(config, tokenizer.pad_id)
    return replace(config, text=replace(text, vocab_size=text.vocab_size or words))


def export_config(kind: str, model: ModelConfig, loader: LoaderConfig, **more: Any) -> dict[str, Any]:
    """What stands in an export's config.json: enough to build the model and to prepare its input."""
    prepared = {key: value for key, value in asdict(loader).items() if key not in STORAGE_KEYS}
    return {"kind": kind, "model": asdict(model), "loader": prepared, **more}
