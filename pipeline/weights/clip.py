"""Names of CLIP in two spellings: OpenAI's, which METER and ELIP's towers share, and Hugging Face's.

The token that speaks for a text: ours is the last real one, of the padding mask. Hugging Face takes the first end
token (or, where its config says ``eos_token_id: 2`` as OpenAI's first releases do, the largest id, which is the end
token's). Both are one token where the mask ends with the first end token, as CLIP's tokenizers give it; a mask that
counts end tokens used as padding among the real ones would pick another.
"""

from typing import Literal

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.clip import Clip
from pipeline.precision import at_least_float32
from pipeline.weights.described import Described, check_described, check_switches
from pipeline.weights.mapping import (
    NameMap,
    Rule,
    convert,
    drop,
    export_tensors,
    fill,
    import_tensors,
    join_rows,
    rename,
)
from pipeline.weights.positions import fit_positions
from pipeline.weights.reading import Foreign
from pipeline.weights.sizes import POSITIONS

_SIZES = (
    Described("heads", "num_attention_heads", None),
    Described("eps", "layer_norm_eps", 1e-5),
    Described("activation", "hidden_act", "quick_gelu"),
)
DEFAULT_HEADS = {"vision": 12, "text": 8}
"""Hugging Face's own, which its files may leave out."""


def openai_vision_rules(foreign: str, ours: str) -> tuple[Rule, ...]:
    """A vision tower with a norm before its blocks and no bias of the patches.

    Args:
        foreign: Prefix of their names, such as ``visual.``.
        ours: Prefix of ours, such as ``visual_encoder.``.
    """
    return (
        rename(f"{foreign}conv1.weight", f"{ours}patch_embed.proj.weight"),
        *_token_rules(f"{foreign}class_embedding", f"{foreign}positional_embedding", ours),
        rename(f"{foreign}ln_pre.{{p}}", f"{ours}norm_pre.{{p}}"),
        *_openai_blocks(foreign, ours),
        rename(f"{foreign}ln_post.{{p}}", f"{ours}norm.{{p}}"),
    )


def openai_projection(foreign: str, ours: str) -> Rule:
    """A matrix that multiplies from the right there, and is a linear map here."""
    return convert(foreign, ours, _turned, _turned)


def load_clip(model: Clip, foreign: Foreign) -> list[str]:
    """Fills a CLIP from either spelling; the position table of the pictures is resized to the model's.

    Returns:
        Their names that were left out on purpose.

    Raises:
        UserError: It is no CLIP, or names, shapes or the described sizes do not fit.
    """
    imported = import_tensors(foreign.tensors, clip_map(foreign))
    check_tower("vision", model.config.vision, foreign)
    check_tower("text", model.config.text, foreign)
    check_switches(model.config.vision, imported.tensors, "visual_encoder.")
    tensors = fit_positions(imported.tensors, POSITIONS, model.config.vision.grid)
    fill(model, tensors, unknown=imported.unknown)
    return imported.dropped


def to_huggingface(model: Clip) -> dict[str, Tensor]:
    """The weights under the names of transformers' ``CLIPModel``."""
    return export_tensors(model.state_dict(), HUGGINGFACE_CLIP).tensors


def clip_map(foreign: Foreign) -> NameMap:
    """The spelling of a file.

    Raises:
        UserError: It is neither of the two.
    """
    for name, name_map in _SPELLINGS.items():
        if name in foreign.tensors:
            return name_map
    raise UserError(f"{foreign.path} is no CLIP with a vision transformer: it has none of {', '.join(_SPELLINGS)}")


def check_tower(part: Literal["vision", "text"], config: object, foreign: Foreign) -> None:
    """Compares what shapes do not tell with Hugging Face's config.json, where there is one.

    Raises:
        UserError: Heads, eps or activation differ.
    """
    if foreign.config is not None:
        described = {"num_attention_heads": DEFAULT_HEADS[part], **(foreign.config.get(f"{part}_config") or {})}
        check_described(f"model.{part}", config, described, _SIZES)


def _token_rules(class_token: str, positions: str, ours: str) -> tuple[Rule, ...]:
    """Tokens and positions that have no leading axis there."""
    return (
        convert(class_token, f"{ours}cls_token", lambda t: t[None, None], lambda t: t[0, 0]),
        convert(positions, f"{ours}pos_embed", lambda t: t[None], lambda t: t[0]),
    )


def _openai_blocks(foreign: str, ours: str) -> tuple[Rule, ...]:
    block, own = f"{foreign}transformer.resblocks.{{i}}", f"{ours}blocks.{{i}}"
    return (
        rename(f"{block}.ln_1.{{p}}", f"{own}.norm1.{{p}}"),
        rename(f"{block}.attn.in_proj_{{p}}", f"{own}.attn.qkv.{{p}}"),  # stacks q, k, v as qkv does
        rename(f"{block}.attn.out_proj.{{p}}", f"{own}.attn.proj.{{p}}"),
        rename(f"{block}.ln_2.{{p}}", f"{own}.norm2.{{p}}"),
        rename(f"{block}.mlp.c_fc.{{p}}", f"{own}.mlp.fc1.{{p}}"),
        rename(f"{block}.mlp.c_proj.{{p}}", f"{own}.mlp.fc2.{{p}}"),
    )


def _huggingface_blocks(foreign: str, ours: str) -> tuple[Rule, ...]:
    layer, own = f"{foreign}encoder.layers.{{i}}", f"{ours}blocks.{{i}}"
    return (
        rename(f"{layer}.layer_norm1.{{p}}", f"{own}.norm1.{{p}}"),
        join_rows([f"{layer}.self_attn.{part}_proj.{{p}}" for part in "qkv"], f"{own}.attn.qkv.{{p}}"),
        rename(f"{layer}.self_attn.out_proj.{{p}}", f"{own}.attn.proj.{{p}}"),
        rename(f"{layer}.layer_norm2.{{p}}", f"{own}.norm2.{{p}}"),
        rename(f"{layer}.mlp.fc1.{{p}}", f"{own}.mlp.fc1.{{p}}"),
        rename(f"{layer}.mlp.fc2.{{p}}", f"{own}.mlp.fc2.{{p}}"),
    )


def _huggingface_vision(foreign: str, ours: str) -> tuple[Rule, ...]:
    embeddings = f"{foreign}embeddings."
    return (
        rename(f"{embeddings}patch_embedding.weight", f"{ours}patch_embed.proj.weight"),
        *_token_rules(f"{embeddings}class_embedding", f"{embeddings}position_embedding.weight", ours),
        rename(f"{foreign}pre_layrnorm.{{p}}", f"{ours}norm_pre.{{p}}"),  # their spelling
        *_huggingface_blocks(foreign, ours),
        rename(f"{foreign}post_layernorm.{{p}}", f"{ours}norm.{{p}}"),
    )


def _temperature(foreign: str, ours: str) -> Rule:
    """The logarithm of what scores are multiplied by there; what they are divided by here."""
    return convert(foreign, ours, lambda t: (-at_least_float32(t)).exp(), lambda t: -t.log())


def _turned(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous()


OPENAI_CLIP = NameMap(
    (
        *openai_vision_rules("visual.", "visual_encoder."),
        openai_projection("visual.proj", "vision_proj.weight"),
        rename("token_embedding.weight", "text_encoder.token_embedding.weight"),
        rename("positional_embedding", "text_encoder.positional_embedding"),
        *_openai_blocks("", "text_encoder."),
        rename("ln_final.{p}", "text_encoder.norm.{p}"),
        openai_projection("text_projection", "text_proj.weight"),
        _temperature("logit_scale", "temp"),
        # Sizes that the released archives carry beside the weights.
        *map(drop, ("input_resolution", "context_length", "vocab_size")),
    ),
    "OpenAI's CLIP",
)

HUGGINGFACE_CLIP = NameMap(
    (
        *_huggingface_vision("vision_model.", "visual_encoder."),
        rename("visual_projection.weight", "vision_proj.weight"),
        rename("text_model.embeddings.token_embedding.weight", "text_encoder.token_embedding.weight"),
        rename("text_model.embeddings.position_embedding.weight", "text_encoder.positional_embedding"),
        *_huggingface_blocks("text_model.", "text_encoder."),
        rename("text_model.final_layer_norm.{p}", "text_encoder.norm.{p}"),
        rename("text_projection.weight", "text_proj.weight"),
        _temperature("logit_scale", "temp"),
        # Counters that older versions stored.
        drop("{part:text|vision}_model.embeddings.position_ids"),
    ),
    "Hugging Face's CLIP",
)

_SPELLINGS = {
    "visual.conv1.weight": OPENAI_CLIP,
    "vision_model.embeddings.patch_embedding.weight": HUGGINGFACE_CLIP,
}
