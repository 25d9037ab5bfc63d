"""How the projects that weights come from read texts, for folders of weights and tokenizers that do not say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.models.config import BackboneName

_TEXTS: Mapping[BackboneName, TokenizerConfig] = {
    "albef": TokenizerConfig(clean="albef", max_words=30, end=False),
    "blip": TokenizerConfig(clean="blip", max_words=30),
    "meter": TokenizerConfig(clean="none", max_words=50),
    "clip": TokenizerConfig(clean="none", max_words=77),
}
"""As pre-training has it."""
_WORDS = {"albef_vqa": 50, "blip_vqa": 50, "blip_nlvr": 40}
"""Of fine-tuned models that read other numbers, by the kind of their export."""


def usual_texts(backbone: BackboneName, kind: str | None = "backbone") -> TokenizerConfig:
    """How the project that weights come from reads the texts of such a model.

    Args:
        backbone: Of the model.
        kind: Of its export, as config.json has it.
    """
    usual = _TEXTS[backbone]
    return replace(usual, max_words=_WORDS.get(str(kind), usual.max_words))


def tokenizer_for(folder: Path, given: Path | None, backbone: BackboneName, kind: str | None) -> Tokenizer:
    """The tokenizer of an export, or the one that is given.

    Texts are read as the tokenizer's folder says, else as the export's own, else as is usual: transformers' folders
    say nothing of it, and what `trimline import` writes has no tokenizer.

    Args:
        folder: Of the export.
        given: Of a tokenizer; None for the export's own.
        backbone: Of the export's model.
        kind: Of the export, as config.json has it.

    Raises:
        UserError: There is no tokenizer.
    """
    return Tokenizer.from_pretrained(given or folder, usual=usual_texts(backbone, kind).said_in(folder))
