"""CLIP as transformers' ``CLIPModel`` stores it: tensors and config.json."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from data_prep.errors import UserError
from pipeline.models.clip import Clip
from pipeline.models.config import ModelConfig
from pipeline.weights.clip import to_huggingface
from pipeline.weights.hf_config import vision_section
from pipeline.weights.loaded import Written
from pipeline.weights.sizes import POSITIONS

_PUBLISHED_WORDS = 49408  # OpenAI's vocabulary; its last word ends a text


def to_clip_hf(config: ModelConfig, model: nn.Module, described: Mapping[str, Any]) -> Written:
    """Tensors and config.json as transformers loads them.

    Args:
        config: Sizes.
        model: The weights.
        described: The export's config.json, which says under ``tokens`` which token ends a text: transformers looks for
            it, ours takes the last real one.

    Raises:
        UserError: transformers cannot hold such a model, or nothing says how a text ends.
    """
    assert isinstance(model, Clip)
    vision, text = config.vision, config.text
    if vision.height != vision.width_px:
        raise UserError(f"transformers' CLIP wants square pictures, not {vision.height} x {vision.width_px}")
    if vision.patch_bias or not vision.pre_norm:
        raise UserError(
            "transformers' CLIP has a norm before its blocks and no bias of the patches; this model has "
            f"vision.patch_bias={vision.patch_bias} and vision.pre_norm={vision.pre_norm}"
        )
    tensors = to_huggingface(model)
    return Written(
        tensors=tensors,
        config={
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "dtype": str(model.state_dict()[POSITIONS].dtype).removeprefix("torch."),
            "projection_dim": config.embed,
            "vision_config": {**vision_section(vision), "projection_dim": config.embed},
            "text_config": {
                "vocab_size": text.vocab_size,
                "hidden_size": text.width,
                "intermediate_size": text.hidden_width,
                "num_hidden_layers": text.text_layers,
                "num_attention_heads": text.heads,
                "max_position_embeddings": text.max_positions,
                "hidden_act": text.activation,
                "layer_norm_eps": text.eps,
                "projection_dim": config.embed,
                "eos_token_id": _end(text.vocab_size, described),
            },
        },
    )


def _end(words: int, described: Mapping[str, Any]) -> int:
    said = (described.get("tokens") or {}).get("end")
    if said is None and words != _PUBLISHED_WORDS:
        raise UserError(
            'the export does not say which token ends a text, which transformers\' CLIP looks for; add "tokens": '
            '{"end": ID} to its config.json'
        )
    return words - 1 if said is None else int(said)
