"""`trimline flops`: multiply-accumulates of a model on a task, by module."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from launch.answers import Answer
from launch.reading import read_config
from launch.recipes import find_recipe
from launch.report.table import aligned
from pipeline.measure.model_flops import FlopsConfig, count_macs
from pipeline.models.config import ModelConfig

PUBLISHED_WORDS = {"albef": 30522, "blip": 30524, "meter": 50265, "clip": 49408}
"""Vocabularies of the published models: a decoder's scores depend on them."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A YAML file with a model in it.

    Attributes:
        model: The backbone.
    """

    model: ModelConfig


def read_model(model: str, image_size: int | None) -> ModelConfig:
    """Sizes of a model with the vocabulary of the published one, where the file leaves that to a tokenizer.

    Args:
        model: Name of a file in configs/models, or the path of a YAML file with a `model`.
        image_size: Height and width in pixels; None for the file's.

    Raises:
        UserError: No such model, or sizes that do not fit.
    """
    name = model if "/" in model or model.endswith(".yaml") else f"configs/models/{model}.yaml"
    config = read_config(ModelFile, [find_recipe(name)], []).model
    config = replace(
        config, text=replace(config.text, vocab_size=config.text.vocab_size or PUBLISHED_WORDS[config.backbone])
    )
    if image_size is None:
        return config
    return replace(config, vision=replace(config.vision, height=image_size, width_px=image_size))


def flops_command(model: str, image_size: int | None, flops: Mapping[str, Any]) -> Answer:
    """Counts, and says what was counted.

    Args:
        model: As in `read_model`.
        image_size: Likewise.
        flops: Fields of `FlopsConfig`; None stands for its default.

    Raises:
        UserError: No such model or task, or sizes that do not fit.
    """
    config = read_model(model, image_size)
    asked = FlopsConfig(**{key: value for key, value in flops.items() if value is not None})
    gmacs = {part: macs / 1e9 for part, macs in count_macs(config, asked).items()}
    size = [config.vision.height, config.vision.width_px]
    data = {
        "model": model,
        "task": asked.task,
        "image_size": size[0] if size[0] == size[1] else size,
        "text_length": asked.text_length,
        "gmacs": gmacs,
    }
    return 0, data, _text(data, asked, config)


def _text(data: Mapping[str, Any], asked: FlopsConfig, config: ModelConfig) -> str:
    lines = [[part, f"{value:.2f}", f"{value / data['gmacs']['total']:.0%}"] for part, value in data["gmacs"].items()]
    head = f"{data['model']}, {asked.task}, {config.vision.height} x {config.vision.width_px} px, "
    head += f"{asked.text_length} text tokens; matrix products of one instance without padding"
    return "\n".join([head, *aligned([["part", "GMACs", "share"], *lines], left=1)])
