"""`trimline flops` and `trimline analyse flops`: multiply-accumulates of models on a task, by module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.answers import Answer
from launch.reading import read_config
from launch.recipes import find_recipe
from launch.report.instances import bar_drawing
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
    there = {part: value for part, value in data["gmacs"].items() if value}  # not every model has every part
    lines = [[part, f"{value:.2f}", f"{value / there['total']:.0%}"] for part, value in there.items()]
    head = f"{data['model']}, {asked.task}, {config.vision.height} x {config.vision.width_px} px, "
    head += f"{asked.text_length} text tokens; matrix products of one instance without padding"
    return "\n".join([head, *aligned([["part", "GMACs", "share"], *lines], left=1)])


def shares_command(models: Sequence[str], task: str, image_size: int | None, text_length: int, out: Path) -> Answer:
    """`trimline analyse flops`: a bar for each model.

    Args:
        models: Each as in `read_model`.
        task: What they do.
        image_size: As in `read_model`, of all of them.
        text_length: Tokens of the text.
        out: Folder of the figure and its numbers.

    Raises:
        UserError: As in `flops_command`, or a model is named twice.
    """
    if len(set(models)) < len(models):
        raise UserError(f"a model is named twice among {', '.join(models)}; leave one out")
    bars, sizes = {}, set()
    for model in models:
        _, data, _ = flops_command(model, image_size, {"task": task, "text_length": text_length})
        assert data is not None
        name = Path(model).stem
        bars[name] = {part: gmacs for part, gmacs in data["gmacs"].items() if part != "total"}
        sizes.add(str(data["image_size"]))
    note = f"{text_length} text tokens, {' or '.join(sorted(sizes))} px; matrix products of one instance, no padding."
    drawing = bar_drawing(f"flops-{task}", f"{task}: where multiply-accumulates go", note, bars)
    drawing.save(out)
    lines = [[str(cell) for cell in drawing.columns]]
    lines += [[str(row[0]), str(row[1]), f"{row[2]:.2f}", f"{row[3]:.0%}"] for row in drawing.rows]
    text = "\n".join([*aligned(lines, left=2), f"{note} Figure and numbers: {out / drawing.name}.svg, .csv"])
    return 0, {"task": task, "text_length": text_length, "gmacs": bars}, text
