"""ALBEF's official checkpoints, of pre-training, retrieval and VQA: names, sizes, and a model with such weights."""

import re
from collections.abc import Mapping

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.albef import Albef, AlbefAnswering
from pipeline.models.config import ModelConfig
from pipeline.weights.loaded import Hints, Loaded
from pipeline.weights.mapping import NameMap, Rule, drop, keep, tied
from pipeline.weights.official import read_official
from pipeline.weights.sizes import count, embed_size, text_sizes, vision_sizes

_TEXT = "text_encoder.bert."
WORD_HEAD = "text_encoder.cls"
"""What tells masked words."""
_DECODER = "text_decoder."
_BARE = re.compile(r"^text_encoder(|_m)\.(?=(?:embeddings|encoder)\.)")


def _word_head(tower: str) -> tuple[Rule, Rule]:
    """One that has its word embeddings as output matrix; files have both names."""
    words, bias = f"{tower}.bert.embeddings.word_embeddings.weight", f"{tower}.cls.predictions.bias"
    decoder = f"{tower}.cls.predictions.decoder"
    return tied(words, words, f"{decoder}.weight"), tied(bias, bias, f"{decoder}.bias")


ALBEF = NameMap(
    (
        drop("{rest}.embeddings.position_ids"),
        *_word_head("text_encoder"),
        *_word_head("text_decoder"),
        keep("temp"),
        keep("{part:visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|itm_head}.{rest}"),
    ),
    "ALBEF",
)


def albef_sizes(tensors: Mapping[str, Tensor], hints: Hints) -> ModelConfig:
    """Sizes of the model whose weights these are, by our names.

    Raises:
        UserError: They cannot be told, or the layers with cross-attention are not the upper ones.
    """
    layers = f"{_TEXT}encoder.layer."
    total, fusing = count(tensors, layers), count(tensors, layers, ".crossattention.")
    upper = [f"{layers}{layer}.crossattention.self.query.weight" for layer in range(total - fusing, total)]
    if not 0 < fusing < total or any(name not in tensors for name in upper):
        raise UserError(
            f"{fusing} of the {total} text layers have cross-attention; ALBEF has it in the upper ones; check --kind"
        )
    return ModelConfig(
        backbone="albef",
        vision=vision_sizes(tensors, hints),
        text=text_sizes(tensors, _TEXT, hints, fusing),
        embed=embed_size(tensors),
    )


def read_albef(tensors: Mapping[str, Tensor], hints: Hints, keep_momentum: bool = False) -> Loaded:
    """A pre-trained ALBEF, one fine-tuned for retrieval, which predicts no words, or for VQA; see `read_official`."""
    tensors = _as_pretrained(tensors)
    if any(name.startswith(_DECODER) for name in tensors):
        return read_official(tensors, ALBEF, albef_sizes, ("albef_vqa", AlbefAnswering), hints, keep_momentum)
    lacking = () if any(name.startswith(f"{WORD_HEAD}.") for name in tensors) else (WORD_HEAD,)
    return read_official(tensors, ALBEF, albef_sizes, ("backbone", Albef), hints, keep_momentum, lacking)


def _as_pretrained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By pre-training's names: in fine-tuning ``text_encoder.bert.`` is ``text_encoder.`` alone."""
    return {_BARE.sub(r"text_encoder\1.bert.", name): tensor for name, tensor in tensors.items()}
