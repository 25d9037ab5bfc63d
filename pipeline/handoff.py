"""Whether a checkpoint of pre-training is one for this run: its backbone, its tokenizer, the size of its pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import Tokenizer
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.config import ModelConfig

_BEGINNINGS = ("temperature", "dropout", "vocab_size")
"""What a run's configuration says of how a model begins, or leaves to the tokenizer."""
_SHOWN = 5


def check_fits(
    folder: Path, found: ModelConfig, wanted: ModelConfig, tokenizer: Tokenizer, loader: LoaderConfig
) -> None:
    """Refuses a checkpoint that was made for another run.

    Args:
        folder: Of the export.
        found: Sizes of its model.
        wanted: Sizes in this run's configuration.
        tokenizer: Of this run.
        loader: Of this run.

    Raises:
        UserError: Naming what differs, with both values.
    """
    made_with = read_json(folder / "config.json").get("tokenizer")
    lines = [
        *_sizes(found, wanted),
        *_pictures(found, loader),
        *_words(found, tokenizer, made_with),
    ]
    if lines:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise UserError(
            f"{folder} does not fit this run: {'; '.join(lines[:_SHOWN])}{more}. Pre-train again, or give this run "
            "what the checkpoint was made with"
        )


def _sizes(found: ModelConfig, wanted: ModelConfig) -> Iterator[str]:
    if found.backbone != wanted.backbone:
        yield f"its backbone is {found.backbone}, this run's is {wanted.backbone}"
        return  # no size means the same in both
    theirs, ours = dict(_flat(asdict(found))), dict(_flat(asdict(wanted)))
    for key, value in ours.items():
        if theirs[key] != value and key.rpartition(".")[2] not in _BEGINNINGS:
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
        yield f"it was trained for {trained[0]} x {trained[1]} pixels, the loader gives {given[0]} x {given[1]}"


def _words(found: ModelConfig, tokenizer: Tokenizer, made_with: str | None) -> Iterator[str]:
    words = tokenizer.vocab_size + (EXTRA_WORDS if found.backbone == "blip" else 0)
    # Imported weights do not say which tokenizer they are for: that it has no more words than they is all we know.
    if found.text.vocab_size < words or (made_with is not None and made_with != tokenizer.digest):
        yield f"it was trained with another tokenizer ({found.text.vocab_size} words, this run's has {words})"
