"""CLIP and METER from a file alone: sizes from shapes, then a model with these weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.clip import Clip
from pipeline.models.config import FusionConfig, ModelConfig
from pipeline.models.feed_forward import Activation
from pipeline.models.heads import TaskClassifier
from pipeline.models.meter import Meter
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.tasks.classes import classes_of
from pipeline.weights.clip import DEFAULT_HEADS, clip_map, load_clip
from pipeline.weights.loaded import MATCHING, Hints, Loaded, heads_of
from pipeline.weights.mapping import fill, import_tensors
from pipeline.weights.meter import METER, lacking_heads, load_meter, match_by_rank
from pipeline.weights.reading import Foreign
from pipeline.weights.sizes import count, embed_size, new_model, text_sizes, vision_sizes

_EPS = 1e-5
_PAD_ID = 1
"""RoBERTa's padding."""
_TASKS = {"vqa": "vqa", "snli": "snli_ve", "nlvr2": "nlvr2"}
"""METER's names of tasks, and ours. Its relations are numbered from contradiction to entailment, ours the other way."""
_ACTIVATIONS: tuple[Activation, ...] = ("gelu", "quick_gelu")


def read_clip(foreign: Foreign, hints: Hints) -> Loaded:
    """A CLIP of OpenAI or Hugging Face.

    Args:
        foreign: Heads, eps and activation are those of a folder's config.json; of a single file, OpenAI's.
        hints: What the file cannot tell.

    Raises:
        UserError: Names are missing or unknown, or tensors do not fit.
    """
    imported = import_tensors(foreign.tensors, clip_map(foreign))
    config = clip_sizes(imported.tensors, hints, foreign.config or {})
    model = new_model(Clip, config, imported.tensors)
    return Loaded(kind="backbone", config=config, dropped=tuple(load_clip(model, foreign)), model=model.eval())


def read_meter(tensors: Mapping[str, Tensor], hints: Hints) -> Loaded:
    """An official METER as a backbone: heads of pre-training that it lacks are drawn, those of tasks stand beside it.

    A model that was fine-tuned for retrieval matches with the head that it has learned to rank by.

    Args:
        tensors: By official names. On the meta device nothing is stored, and names and shapes are checked.
        hints: What the file cannot tell.

    Raises:
        UserError: Names are missing or unknown, or tensors do not fit.
    """
    imported = import_tensors(tensors, METER)
    config = meter_sizes(imported.tensors, hints)
    model = new_model(Meter, config, imported.tensors)
    heads = load_meter(model, tensors)
    lacking, replaced = lacking_heads(tensors), list[str]()
    if rank := heads.tensors.get("rank"):
        match_by_rank(model, rank)
        replaced = [f"{name} (rank_output takes its place)" for name in tensors if name.startswith("itm_score.")]
    return Loaded(
        kind="backbone",
        config=config,
        model=model.eval(),
        dropped=(*heads.dropped, *replaced),
        heads=task_heads(heads.tensors, model.itm_head.in_features),
        lacking=tuple(name for name in lacking if not (rank and name == MATCHING)),
    )


def task_heads(found: Mapping[str, Mapping[str, Tensor]], features: int) -> dict[str, dict[str, Tensor]]:
    """Classifiers by our names of their tasks, classes in our order.

    Args:
        found: By METER's names, as `load_meter` gives them.
        features: Width of what the head of one picture looks at.

    Raises:
        UserError: A part of a head is missing or of another shape.
    """
    heads: dict[str, dict[str, Tensor]] = {}
    for theirs, task in _TASKS.items():
        if theirs not in found:
            continue
        classes = len(found[theirs].get("3.weight", ())) if task == "vqa" else len(classes_of(task).names)
        head = TaskClassifier(features * (2 if task == "nlvr2" else 1), features, classes)
        if any(tensor.is_meta for tensor in found[theirs].values()):
            head = head.to("meta")
        named = f"{theirs}_classifier"  # as the file calls it, for what is wrong with it
        fill(nn.ModuleDict({named: head}), {f"{named}.{name}": tensor for name, tensor in found[theirs].items()})
        heads[task] = head.state_dict()
        if task == "snli_ve":
            heads[task] |= {name: heads[task][name].flip(0) for name in ("3.weight", "3.bias")}
    return heads


def clip_sizes(tensors: Mapping[str, Tensor], hints: Hints, described: Mapping[str, Any]) -> ModelConfig:
    """Sizes of the CLIP whose weights these are.

    Args:
        tensors: By our names.
        hints: Heads and picture size.
        described: Hugging Face's config.json, or nothing.

    Raises:
        UserError: They cannot be told.
    """
    text_part, vision_part = (_part(described, name) for name in ("text", "vision"))
    hints = replace(
        hints,
        text_heads=hints.text_heads or text_part["heads"],
        vision_heads=hints.vision_heads or vision_part["heads"],
    )
    words, positions = (
        _shape(tensors, f"text_encoder.{name}") for name in ("token_embedding.weight", "positional_embedding")
    )
    text = TextConfig(
        vocab_size=words[0],
        width=words[1],
        text_layers=count(tensors, "text_encoder.blocks."),
        fusion_layers=0,
        heads=heads_of(words[1], hints.text_heads, "text"),
        hidden=_shape(tensors, "text_encoder.blocks.0.mlp.fc1.weight")[0],
        max_positions=positions[0],
        type_rows=0,
        eps=text_part["eps"],
        activation=text_part["activation"],
    )
    vision = clip_vision_sizes(tensors, hints)
    vision = replace(vision, eps=vision_part["eps"], activation=vision_part["activation"])
    return ModelConfig(backbone="clip", vision=vision, text=text, embed=embed_size(tensors))


def meter_sizes(tensors: Mapping[str, Tensor], hints: Hints) -> ModelConfig:
    """Sizes of the METER whose weights these are, by our names.

    Raises:
        UserError: They cannot be told.
    """
    text = text_sizes(tensors, "text_encoder.", hints)
    width = _shape(tensors, "text_transform.weight")[0]
    fusion = FusionConfig(
        width=width,
        heads=heads_of(width, hints.fusion_heads, "fusion"),
        hidden=_shape(tensors, "text_layers.0.intermediate.dense.weight")[0],
    )
    return ModelConfig(
        backbone="meter",
        vision=clip_vision_sizes(tensors, hints),
        text=replace(text, fusion_layers=count(tensors, "text_layers."), pad_id=_PAD_ID, eps=_EPS),
        fusion=fusion,
    )


def clip_vision_sizes(tensors: Mapping[str, Tensor], hints: Hints) -> VisionConfig:
    """A vision tower as OpenAI made them."""
    sizes = vision_sizes(tensors, hints)
    return replace(sizes, eps=_EPS, activation="quick_gelu", pre_norm=True, patch_bias=False)


def _part(described: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Heads, eps and activation of one tower; heads are None where there is no config.json."""
    given = described.get(f"{name}_config") or {}
    activation = given.get("hidden_act", "quick_gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(f"config.json has {name}_config.hidden_act={activation!r}; {_ACTIVATIONS} can be read")
    heads = given.get("num_attention_heads", DEFAULT_HEADS[name]) if described else None
    return {"heads": heads, "eps": given.get("layer_norm_eps", _EPS), "activation": activation}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != 2:
        raise UserError(f"{name} is missing or no matrix, so the sizes cannot be told; check --kind")
    return tuple(tensors[name].shape)
