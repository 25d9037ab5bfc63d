"""BLIP's official checkpoints, pre-trained and fine-tuned: names, sizes, and a model with such weights."""

from collections.abc import Mapping

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.blip_tasks import BLIP_MODELS, BlipKind
from pipeline.models.config import ModelConfig
from pipeline.weights.loaded import Hints, Loaded
from pipeline.weights.mapping import NameMap, Rule, drop, keep, tied
from pipeline.weights.official import read_official
from pipeline.weights.sizes import embed_size, text_sizes, vision_sizes

ENCODER, DECODER = "text_encoder.", "text_decoder.bert."
_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
_BIAS = "text_decoder.cls.predictions.bias"

TEXT_RULES: tuple[Rule, ...] = (
    drop("{rest}.embeddings.position_ids"),
    tied(_WORDS, _WORDS, "text_decoder.cls.predictions.decoder.weight"),
    tied(_BIAS, _BIAS, "text_decoder.cls.predictions.decoder.bias"),
    keep("{part:text_encoder|text_decoder|vision_proj|text_proj|itm_head}.{rest}"),
)
"""Texts and heads, whose names are official here and with Hugging Face."""

BLIP = NameMap((*TEXT_RULES, keep("temp"), keep("{part:visual_encoder|cls_head}.{rest}")), "BLIP")


def _twin(rest: str) -> Rule:
    """Weights for one image, given to both; never written back."""
    layer = "text_encoder.encoder.layer.{i}.crossattention."
    theirs, first, second = rest.format(""), rest.format("0"), rest.format("1")
    return Rule((layer + theirs,), (layer + first, layer + second), lambda t: [t[0], t[0]], lambda t: [t[0]])


PAIR_FROM_SINGLE = NameMap(
    (
        *(_twin(f"self{{}}.{part}.{{{{p}}}}") for part in ("query", "key", "value")),
        _twin("output.dense{}.{{p}}"),
        *(drop(f"{part}.{{rest}}") for part in ("text_decoder", "vision_proj", "text_proj", "itm_head")),
        drop("temp"),
        *BLIP.rules,
    ),
    "BLIP",
)
"""From a model for one image to NLVR2's: merging layers (``text_encoder.`` ... ``merge_layer``) and ``cls_head`` stay
as they begin."""


def blip_kind(names: Mapping[str, Tensor]) -> BlipKind:
    """Which of BLIP's models has these names, official or Hugging Face's.

    Raises:
        UserError: None of them.
    """
    has = {part: any(name.startswith(part) for name in names) for part in (ENCODER, DECODER, "itm_head.", "cls_head.")}
    match tuple(has.values()):
        case (True, False, False, True):
            return "blip_nlvr"
        case (True, True, True, False):
            return "blip"
        case (True, False, True, False):
            return "blip_retrieval"
        case (True, True, False, False):
            return "blip_vqa"
        case (False, True, False, False):
            return "blip_caption"
    found = ", ".join(part for part, there in has.items() if there) or "none of the parts"
    raise UserError(f"these are no weights of BLIP: of {', '.join(has)} the file has {found}; check --kind")


def blip_sizes(tensors: Mapping[str, Tensor], hints: Hints) -> ModelConfig:
    """Sizes of the model whose weights these are, by our names.

    Raises:
        UserError: They cannot be told.
    """
    prefix = ENCODER if f"{ENCODER}embeddings.word_embeddings.weight" in tensors else DECODER
    return ModelConfig(
        backbone="blip",
        vision=vision_sizes(tensors, hints),
        text=text_sizes(tensors, prefix, hints),
        embed=embed_size(tensors),
    )


def read_blip(tensors: Mapping[str, Tensor], hints: Hints, keep_momentum: bool = False) -> Loaded:
    """One of BLIP's models, told by its names; see `read_official`."""
    kind = blip_kind(tensors)
    build = ("backbone" if kind == "blip" else kind, BLIP_MODELS[kind])
    return read_official(tensors, BLIP, blip_sizes, build, hints, keep_momentum)
