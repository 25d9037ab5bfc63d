"""How pictures and texts become the input of an export's model; what an export does not say is asked of the user."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import UserError
from data_prep.files import read_described
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import Tokenizer
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.config import ModelConfig
from pipeline.setup import check_padding
from pipeline.tasks.answer_list import ANSWERS, read_answer_list
from pipeline.trimmed_model import prepared_input
from pipeline.weights.usual_texts import tokenizer_for

_MAX_TOKENS = {
    "albef": 25, "albef_vqa": 64, "blip": 30, "blip_vqa": 35, "blip_retrieval": 35, "blip_nlvr": 64, "meter": 50,
    "clip": 77,
}  # fmt: skip
"""Of the reference recipes, for weights from elsewhere that do not say: by kind, else by backbone. ALBEF cuts no
question that it is asked; 50 words are fewer than these tokens."""

_OF_RETRIEVAL = {"albef": 30, "blip": 35}
"""Likewise where they do retrieval, by backbone: longer than in pre-training."""

_CROPS: dict[str, Literal["none", "center"]] = {"meter": "center", "clip": "center"}
"""Of the recipes that do not squeeze pictures into the model's shape, by backbone; imports from before
2026-11-23 do not say."""


def loader_of(folder: Path, described: dict[str, Any], config: ModelConfig, task: str | None = None) -> LoaderConfig:
    """As the export says; weights from elsewhere do not, and get what their reference recipes use.

    Args:
        folder: Of the export.
        described: Its config.json.
        config: Sizes of its model.
        task: What is asked of it; None for a run's, which goes on from its pre-training.
    """
    cut = _MAX_TOKENS.get(described["kind"], _MAX_TOKENS[config.backbone])
    if task == "retrieval":
        cut = _OF_RETRIEVAL.get(config.backbone, cut)
    plain = LoaderConfig(
        height=config.vision.height,
        width=config.vision.width_px,
        resize="bicubic",
        crop=described.get("crop", _CROPS.get(config.backbone, "none")),
        max_tokens=min(cut, config.text.longest),
        workers=0,
    )
    if "loader" not in described:
        return plain
    transform, max_tokens = prepared_input(folder, described)
    return replace(plain, **asdict(transform), max_tokens=max_tokens)


def tokenizer_of(folder: Path, given: Path | None, config: ModelConfig) -> Tokenizer:
    """The export's own, or another one that the user names; texts are read as the model was trained to read them.

    Args:
        folder: Of the export.
        given: Folder of the tokenizer; None for the export's own.
        config: Sizes of its model.

    Raises:
        UserError: It is not there, or is not the one that the model was trained with.
    """
    where, kind = given or folder, read_described(folder / "config.json").get("kind")
    try:
        tokenizer = tokenizer_for(folder, given, config.backbone, kind)
    except UserError as error:
        raise UserError(f"{error}; name it with --tokenizer DIR") from error
    check_padding(config, tokenizer.pad_id)
    words = tokenizer.vocab_size + (EXTRA_WORDS if config.backbone == "blip" else 0)
    if words > config.text.vocab_size:
        raise UserError(
            f"the tokenizer of {where} has {words} words with the model's own, and {folder} knows "
            f"{config.text.vocab_size}: give the tokenizer that it was trained with, by --tokenizer DIR"
        )
    return tokenizer


def given_answers(folder: Path, given: Path | None) -> tuple[str, ...]:
    """The list of answers for imported weights, which have none.

    Raises:
        UserError: None is given, or what is given is no list of texts.
    """
    if given is None:
        raise UserError(
            f"{folder} holds imported weights, which have no list of answers; give --answers FILE, a JSON "
            f"list of texts such as {ANSWERS} of an export"
        )
    return read_answer_list(given, "give a JSON list of different texts")
