"""BLIP as transformers stores it: retrieval, question answering, captioning; in and out.

transformers has no class for BLIP's pre-training model as a whole nor for NLVR2's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.blip import EXTRA_WORDS
from pipeline.models.blip_tasks import BLIP_MODELS, BlipKind
from pipeline.models.config import ModelConfig
from pipeline.weights.blip import TEXT_RULES, blip_kind, blip_sizes
from pipeline.weights.hf_config import vision_section
from pipeline.weights.loaded import Hints, Loaded, Written
from pipeline.weights.mapping import NameMap, export_tensors, fill, import_tensors, rename
from pipeline.weights.sizes import POSITIONS, new_model, with_positions

_LAYER, _BLOCK = "vision_model.encoder.layers.{i}.", "visual_encoder.blocks.{i}."

BLIP_HF = NameMap(
    (
        rename("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        rename("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        rename("vision_model.embeddings.patch_embedding.{p}", "visual_encoder.patch_embed.proj.{p}"),
        rename(f"{_LAYER}self_attn.qkv.{{p}}", f"{_BLOCK}attn.qkv.{{p}}"),
        rename(f"{_LAYER}self_attn.projection.{{p}}", f"{_BLOCK}attn.proj.{{p}}"),
        rename(f"{_LAYER}layer_norm{{n:[12]}}.{{p}}", f"{_BLOCK}norm{{n:[12]}}.{{p}}"),
        rename(f"{_LAYER}mlp.fc{{n:[12]}}.{{p}}", f"{_BLOCK}mlp.fc{{n:[12]}}.{{p}}"),
        rename("vision_model.post_layernorm.{p}", "visual_encoder.norm.{p}"),
        *TEXT_RULES,
    ),
    "transformers' BLIP",
)

CLASSES: dict[BlipKind, str] = {
    "blip_retrieval": "BlipForImageTextRetrieval",
    "blip_vqa": "BlipForQuestionAnswering",
    "blip_caption": "BlipForConditionalGeneration",
}
"""What each of our models is called there."""

# What a config.json leaves out has transformers' default, which is not always BLIP's.
_VISION_DEFAULTS: dict[str, Any] = {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
_TEXT_DEFAULTS: dict[str, Any] = {"num_attention_heads": 8, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}


def read_blip_hf(tensors: Mapping[str, Tensor], config: Mapping[str, Any], hints: Hints) -> Loaded:
    """One of BLIP's models, told by its names; transformers stores no temperature, so that begins anew.

    Args:
        tensors: By their names in transformers.
        config: The config.json beside them, which says how many heads there are, and the epsilons.
        hints: What shall be otherwise.

    Raises:
        UserError: The folder holds something else, or tensors do not fit.
    """
    text, vision = _sections(config)
    kind = blip_kind(tensors)
    if kind not in CLASSES:
        raise UserError(f"the names are those of {kind}, which transformers has no class for; check --kind")
    hints = replace(
        hints,
        vision_heads=int(vision["num_attention_heads"]) if hints.vision_heads is None else hints.vision_heads,
        text_heads=int(text["num_attention_heads"]) if hints.text_heads is None else hints.text_heads,
    )
    imported = import_tensors(tensors, BLIP_HF)
    sizes = blip_sizes(imported.tensors, hints)
    sizes = replace(
        sizes,
        vision=replace(sizes.vision, eps=float(vision["layer_norm_eps"])),
        text=replace(sizes.text, eps=float(text["layer_norm_eps"])),
    )
    model = new_model(BLIP_MODELS[kind], sizes, imported.tensors)
    fill(model, with_positions(imported.tensors, sizes.vision), ("temp",), imported.unknown)
    return Loaded(kind=kind, config=sizes, model=model.eval(), dropped=tuple(imported.dropped))


def to_blip_hf(kind: BlipKind, config: ModelConfig, model: nn.Module) -> Written:
    """Tensors and config.json as transformers loads them.

    Args:
        kind: Of ``model``. Of a pre-training model (``blip``) what its retrieval class has is written.
        config: Its sizes.
        model: The weights.

    Raises:
        UserError: transformers has no class for it.
    """
    target: BlipKind = "blip_retrieval" if kind == "blip" else kind
    if target not in CLASSES:
        raise UserError(
            f"transformers has no class for {kind}; it has them for {', '.join(CLASSES)} and the encoders of blip"
        )
    state = model.state_dict()
    # Nothing there has a temperature, and their retrieval model no decoder.
    left_out = tuple(name for name in state if name == "temp" or (kind == "blip" and name.startswith("text_decoder.")))
    exported = export_tensors({name: tensor for name, tensor in state.items() if name not in left_out}, BLIP_HF)
    assert not exported.unknown, f"no rule for {exported.unknown}"
    return Written(
        tensors=exported.tensors, config=hf_config(target, config, state[POSITIONS].dtype), left_out=left_out
    )


def hf_config(kind: BlipKind, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' config.json says of a model of these sizes.

    Raises:
        UserError: transformers cannot hold such a model.
    """
    vision, text = config.vision, config.text
    if kind == "blip_vqa" and vision.width != text.width:
        raise UserError(
            f"transformers cannot hold an answer decoder of width {text.width} beside a vision tower of width "
            f"{vision.width}: its two text models share one config; only equal widths can be exported"
        )
    if vision.height != vision.width_px:
        raise UserError(f"transformers' BLIP wants square pictures, not {vision.height} x {vision.width_px}")
    return {
        "model_type": "blip",
        "architectures": [CLASSES[kind]],
        "dtype": str(dtype).removeprefix("torch."),
        "image_text_hidden_size": config.embed,
        "tie_word_embeddings": True,
        "text_config": _hf_text(config),
        "vision_config": {"model_type": "blip_vision_model", **vision_section(config.vision)},
    }


def _hf_text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    return {
        "model_type": "blip_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "encoder_hidden_size": config.vision.width,
        "intermediate_size": text.hidden_width,
        "num_hidden_layers": text.text_layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.max_positions,
        "hidden_act": text.activation,
        "layer_norm_eps": text.eps,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "bos_token_id": text.vocab_size - EXTRA_WORDS,
        "is_decoder": True,
        "tie_word_embeddings": True,
    }


def _sections(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text and the vision part, with defaults.

    Raises:
        UserError: It is no config of BLIP's, or has an activation that ours have not.
    """
    if config.get("model_type") != "blip":
        raise UserError(
            f"config.json has model_type={config.get('model_type')!r}; 'blip' is wanted; give a folder of transformers"
        )
    return _section(config, "text_config", _TEXT_DEFAULTS), _section(config, "vision_config", _VISION_DEFAULTS)


def _section(config: Mapping[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise UserError(f"config.json has {name}={given!r}; an object is wanted")
    part = {**defaults, **given}
    if part["hidden_act"] != "gelu":
        raise UserError(f"config.json has {name}.hidden_act={part['hidden_act']!r}; only 'gelu' can be read")
    for key in ("num_attention_heads", "layer_norm_eps"):
        if not isinstance(part[key], int | float):
            raise UserError(f"config.json has {name}.{key}={part[key]!r}; a number is wanted")
    return part
