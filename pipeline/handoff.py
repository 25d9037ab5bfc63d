"""Whether a checkpoint of pre-training is one for this run: its backbone, its tokenizer, the size of its pictures.

Pictures of another size are no hindrance where `trim.image_size` asks for them: positions are interpolated then.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_described
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import Tokenizer
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.config import ModelConfig

_BEGINNINGS = ("temperature", "dropout", "vocab_size")
"""What a run's configuration says of how a model begins, or leaves to the tokenizer."""
_PICTURES = ("vision.height", "vision.width_px")
_SHOWN = 5


def check_fits(
    folder: Path, wanted: ModelConfig, tokenizer: Tokenizer, loader: LoaderConfig, image_size: int | None = None
) -> str:
    """Refuses a checkpoint that was made for another run.

    Args:
        folder: Of the export.
        wanted: Sizes in this run's configuration.
        tokenizer: Of this run.
        loader: Of this run.
        image_size: Side of the pictures that it is to take from now on; None for those that it was trained for.

    Returns:
        What becomes of its positions where the size of its pictures changes; empty where it stays.

    Raises:
        UserError: Naming what differs, with both values.
    """
    described = read_described(folder / "config.json")
    found = ModelConfig.from_dict(described.get("model", {}))
    lines = [
        *_sizes(found, wanted, () if image_size is None else _PICTURES),
        *(_pictures(found, loader) if image_size is None else ()),
        *_words(found, tokenizer, described.get("tokenizer")),
    ]
    if lines:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise UserError(
            f"{folder} does not fit this run: {'; '.join(lines[:_SHOWN])}{more}. Pre-train again, or give this run "
            "what the checkpoint was made with"
        )
    return _interpolated(found, image_size)


def _interpolated(found: ModelConfig, image_size: int | None) -> str:
    old, new = found.vision, found.at_image_size(image_size).vision
    if old.grid == new.grid:
        return ""
    return (
        f"pictures of {new.height} x {new.width_px} instead of {old.height} x {old.width_px} pixels: the positions of "
        f"{old.grid[0]} x {old.grid[1]} patches are interpolated to {new.grid[0]} x {new.grid[1]}"
    )


def _sizes(found: ModelConfig, wanted: ModelConfig, free: Collection[str]) -> Iterator[str]:
    if found.backbone != wanted.backbone:
        yield f"its backbone is {found.backbone}, this run's is {wanted.backbone}"
        return  # no size means the same in both
    theirs, ours = dict(_flat(asdict(found))), dict(_flat(asdict(wanted)))
    for key, value in ours.items():
        if theirs[key] != value and key not in free and key.rpartition(".")[2] not in _BEGINNINGS:
            yield f"its {key} is {theirs[key]}, this run's model.{key} is {value}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _pictures(found: ModelConfig, loader: LoaderConfig) -> Iterator[str]:
    trained, given = (found.vision.height, found.vision.width_px), (loader.height, loader.width)
    if trained != given:
        size = f" (trim.image_size={given[0]} interpolates its positions)" if given[0] == given[1] else ""
        yield f"it was trained for {trained[0]} x {trained[1]} pixels, the loader gives {given[0]} x {given[1]}{size}"


def _words(found: ModelConfig, tokenizer: Tokenizer, made_with: str | None) -> Iterator[str]:
    words = tokenizer.vocab_size + (EXTRA_WORDS if found.backbone == "blip" else 0)
    # Imported weights do not say which tokenizer they are for: that it has no more words than they is all we know.
    if found.text.vocab_size < words or (made_with is not None and made_with != tokenizer.digest):
        yield f"it was trained with another tokenizer ({found.text.vocab_size} words, this run's has {words})"
