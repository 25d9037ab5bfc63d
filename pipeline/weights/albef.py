"""ALBEF's official checkpoints, of pre-training and retrieval: names, sizes, and a model with such weights."""

import re
from collections.abc import Mapping

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.albef import Albef
from pipeline.models.config import ModelConfig
from pipeline.weights.loaded import Hints, Loaded
from pipeline.weights.mapping import NameMap, drop, keep, tied
from pipeline.weights.official import read_official
from pipeline.weights.sizes import count, embed_size, text_sizes, vision_sizes

_TEXT = "text_encoder.bert."
_WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
_WORD_HEAD = "text_encoder.cls"
_BARE = re.compile(r"^text_encoder(|_m)\.(?=(?:embeddings|encoder)\.)")
_BIAS = "text_encoder.cls.predictions.bias"

ALBEF = NameMap(
    (
        drop("{rest}.embeddings.position_ids"),
        tied(_WORDS, _WORDS, "text_encoder.cls.predictions.decoder.weight"),
        tied(_BIAS, _BIAS, "text_encoder.cls.predictions.decoder.bias"),
        keep("temp"),
        keep("{part:visual_encoder|text_encoder|vision_proj|text_proj|itm_head}.{rest}"),
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
    """A pre-trained ALBEF, or one fine-tuned for retrieval, which predicts no words; see `read_official`."""
    tensors = _as_pretrained(tensors)
    lacking = () if any(name.startswith(f"{_WORD_HEAD}.") for name in tensors) else (_WORD_HEAD,)
    return read_official(tensors, ALBEF, albef_sizes, ("backbone", Albef), hints, keep_momentum, lacking)


def _as_pretrained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By pre-training's names: in fine-tuning for retrieval ``text_encoder.bert.`` is ``text_encoder.`` alone."""
    return {_BARE.sub(r"text_encoder\1.bert.", name): tensor for name, tensor in tensors.items()}
