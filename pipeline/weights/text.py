"""Text encoders' weights from BERT and RoBERTa as Hugging Face stores them, and text towers' from a CLIP.

V vocabulary, D width.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.albef import Albef
from pipeline.models.backbone import Backbone
from pipeline.models.blip import EXTRA_WORDS, Blip
from pipeline.models.blocks import PostNormBlock
from pipeline.models.clip import Clip
from pipeline.models.meter import Meter
from pipeline.models.text import Bert, TextConfig
from pipeline.weights.clip import check_tower, clip_map
from pipeline.weights.described import Described, check_described
from pipeline.weights.mapping import NameMap, drop, fill, import_tensors, keep
from pipeline.weights.reading import Foreign

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_PREFIX = re.compile(r"(bert|roberta)\.")
_OLD_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

TEXT = NameMap(
    (
        # Counters that older versions stored.
        drop("embeddings.{counter:position_ids|token_type_ids}"),
        keep("embeddings.{rest}"),
        keep("encoder.{rest}"),
        # What the encoders were trained with: heads for words and next sentences.
        drop("pooler.dense.{p}"),
        drop("cls.{rest}"),
        drop("lm_head.{rest}"),
    ),
    "BERT or RoBERTa",
)

_SIZES = (
    Described("heads", "num_attention_heads", 12),
    Described("eps", "layer_norm_eps", 1e-12),
)
_KINDS = ("bert", "roberta")


def load_bert(encoder: Bert, config: TextConfig, foreign: Foreign, fresh_words: int = 0) -> list[str]:
    """Fills embeddings and layers.

    An encoder of fewer layers takes the first ones. Of one with more, layers that cross-attend may lack theirs, and
    all cross-attention stays as it is.

    Args:
        encoder: Gets the weights.
        config: Its sizes.
        foreign: A folder's config.json is compared with `config`.
        fresh_words: Rows at the end of the word table that the file has none for; they stay as they are.

    Returns:
        Their names that were left out on purpose.

    Raises:
        UserError: Names, shapes or the described sizes do not fit.
    """
    _check(config, foreign)
    imported = import_tensors({_plain(name): t for name, t in foreign.tensors.items()}, TEXT)
    tensors, unused = _fitting(imported.tensors, config, len(encoder.encoder.layer))
    if fresh_words and _WORDS in tensors:
        tensors[_WORDS] = _with_fresh(tensors[_WORDS], encoder.embeddings.word_embeddings.weight, fresh_words)
    fill(encoder, tensors, _may_lack(encoder, config, tensors), imported.unknown)
    return [*imported.dropped, *unused]


def load_text(model: Backbone, foreign: Foreign) -> list[str]:
    """Fills the text encoder of a backbone; CLIP's from a CLIP, the others' from BERT or RoBERTa.

    ALBEF's fusion layers begin as the layers on top of its text layers, BLIP's decoder as its encoder, as the
    originals do.

    Args:
        model: A backbone.
        foreign: What `load_bert` takes, or a CLIP.

    Returns:
        Their names that were left out on purpose.

    Raises:
        UserError: Names, shapes or the described sizes do not fit.
    """
    if isinstance(model, Clip):
        return _load_clip_text(model, foreign)
    if isinstance(model, Meter):
        return load_bert(model.text_encoder, model.config.text, foreign)
    if isinstance(model, Blip):
        dropped = load_bert(model.text_encoder, model.config.text, foreign, EXTRA_WORDS)
        _begin_decoder(model)
        return dropped
    assert isinstance(model, Albef)
    return load_bert(model.text_encoder.bert, model.config.text, foreign)


def _load_clip_text(model: Clip, foreign: Foreign) -> list[str]:
    check_tower("text", model.config.text, foreign)
    imported = import_tensors(foreign.tensors, clip_map(foreign))
    prefix = "text_encoder."
    own = {name.removeprefix(prefix): t for name, t in imported.tensors.items() if name.startswith(prefix)}
    fill(model.text_encoder, own, unknown=imported.unknown)
    return [*imported.dropped, *(name for name in imported.tensors if not name.startswith(prefix))]


def _begin_decoder(model: Blip) -> None:
    """All but self-attention is shared with the encoder already."""
    for own, theirs in zip(model.text_decoder.bert.encoder.layer, model.text_encoder.encoder.layer, strict=True):
        assert isinstance(own, PostNormBlock)
        assert isinstance(theirs, PostNormBlock)
        own.attention.load_state_dict(theirs.attention.state_dict())


def _check(config: TextConfig, foreign: Foreign) -> None:
    described = foreign.config
    if described is None:
        return
    kind = described.get("model_type")
    if kind not in _KINDS:
        raise UserError(f"{foreign.path} holds a model of type {kind!r}; give one of {', '.join(_KINDS)}")
    check_described("model.text", config, described, _SIZES)
    pad = described.get("pad_token_id", 1) if kind == "roberta" else None
    if config.pad_id != pad:
        raise UserError(
            f"model.text.pad_id={config.pad_id}, but positions of {kind} in {foreign.path} want {pad}; set it to that"
        )


def _plain(name: str) -> str:
    """A name without the prefix of models with heads, and with today's names of a norm's weights."""
    name = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
    for old, new in _OLD_ENDS.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _fitting(tensors: Mapping[str, Tensor], config: TextConfig, layers: int) -> tuple[dict[str, Tensor], list[str]]:
    """What an encoder of so many layers has use for, and the names of the rest."""
    unused = [name for name in tensors if (layer := _LAYER.match(name)) and int(layer[1]) >= layers]
    if not config.type_rows:
        unused += [name for name in tensors if name == _TYPES]
    return {name: tensor for name, tensor in tensors.items() if name not in unused}, unused


def _may_lack(encoder: Bert, config: TextConfig, tensors: Mapping[str, Tensor]) -> Sequence[str]:
    there = {int(layer[1]) for name in tensors if (layer := _LAYER.match(name))}
    layers = range(len(encoder.encoder.layer))
    crossing = [f"encoder.layer.{i}.crossattention." for i in layers]
    return [*crossing, *(f"encoder.layer.{i}." for i in layers if i >= config.text_layers and i not in there)]


def _with_fresh(words_VD: Tensor, own_VD: Tensor, fresh: int) -> Tensor:
    return torch.cat([words_VD, own_VD.detach()[-fresh:].to(words_VD)])
