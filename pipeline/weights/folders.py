"""Foreign weights to our export folders and back: `trimline import` and `trimline export`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from torch import nn

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.checkpoint import export_weights, load_weights
from pipeline.models.albef import AlbefAnswering
from pipeline.models.backbone import Backbone
from pipeline.models.blip_tasks import BLIP_MODELS, BlipKind
from pipeline.models.build import BACKBONES
from pipeline.models.config import ModelConfig
from pipeline.weights.albef import read_albef
from pipeline.weights.blip import read_blip
from pipeline.weights.blip_hf import read_blip_hf, to_blip_hf
from pipeline.weights.clip_family import read_clip, read_meter
from pipeline.weights.clip_hf import to_clip_hf
from pipeline.weights.loaded import Hints, Loaded, Written, with_heads, without_heads
from pipeline.weights.mapping import fill
from pipeline.weights.reading import Foreign, read_foreign

Reader = Callable[[Foreign, Hints], Loaded]
Writer = Callable[[ModelConfig, nn.Module, Mapping[str, Any]], Written]


def _blip_hf(foreign: Foreign, hints: Hints) -> Loaded:
    if foreign.config is None:
        raise UserError(f"{foreign.path} is a single file; blip-hf needs its folder, for config.json says the heads")
    return read_blip_hf(foreign.tensors, foreign.config, hints)


READERS: dict[str, Reader] = {
    "albef": lambda foreign, hints: read_albef(foreign.tensors, hints),
    "blip": lambda foreign, hints: read_blip(foreign.tensors, hints),
    "blip-hf": _blip_hf,
    "clip": read_clip,
    "meter": lambda foreign, hints: read_meter(foreign.tensors, hints),
}
"""By the names that ``--kind`` knows; launch/cli.py repeats them."""


_FINE_TUNED: dict[str, type[Backbone]] = {
    **{str(kind): each for kind, each in BLIP_MODELS.items()},
    "albef_vqa": AlbefAnswering,
}
"""Of imports that are no backbones, and BLIP's own; by the kind of their export."""

_CROPPED = ("clip", "meter")
"""Kinds whose reference recipes keep a picture's shape and cut out its middle; the others squeeze it into a square."""


def _blip_writer(kind: BlipKind) -> Writer:
    return lambda config, model, described: to_blip_hf(kind, config, model)


HF_WRITERS: dict[str, Writer] = {**{kind: _blip_writer(kind) for kind in get_args(BlipKind)}, "clip": to_clip_hf}
"""To transformers; by the kind of our exports, a backbone's being its name."""


def import_weights(path: Path, kind: str, out: Path, hints: Hints) -> Loaded:
    """A foreign file or folder -> one of our export folders.

    Args:
        path: What to read.
        kind: One of `READERS`.
        out: A folder that is not there yet, or empty.
        hints: What the file cannot tell.

    Raises:
        UserError: The file is damaged, of another kind, or does not fit.
    """
    _refuse_to_replace(out)
    foreign = read_foreign(path)
    try:
        loaded = READERS[kind](foreign, hints)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    described = {"kind": loaded.kind, "model": asdict(loaded.config), "imported": {"kind": kind, "from": path.name}}
    if kind in _CROPPED:
        described["crop"] = "center"
    if loaded.heads:
        described["heads"] = list(loaded.heads)
    if loaded.lacking:
        described["lacking"] = list(loaded.lacking)
    export_weights(out, with_heads(loaded.model.state_dict(), loaded.heads), described)
    return loaded


def load_model(folder: Path) -> Loaded:
    """The model of an export folder: a backbone, or one of ALBEF's and BLIP's fine-tuned ones.

    Raises:
        UserError: The folder holds something else.
    """
    tensors, described = load_weights(folder)
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind != "backbone" and kind not in _FINE_TUNED:
        known = ", ".join(["backbone", *(name for name in _FINE_TUNED if name != "blip")])
        raise UserError(f"{folder} holds a {kind!r} model; {known} can be read; give the export of pre-training")
    try:
        config = ModelConfig.from_dict(described.get("model", {}))
        model = (BACKBONES[config.backbone] if kind == "backbone" else _FINE_TUNED[str(kind)])(config)
        model.to(next(iter(tensors.values())).dtype)
        own, heads = without_heads(tensors)
        fill(model, own)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return Loaded(kind=str(kind), config=config, model=model.eval(), heads=heads)


def export_to_hf(folder: Path, out: Path) -> Written:
    """One of our export folders -> a folder that transformers' ``from_pretrained`` loads.

    Args:
        folder: What to read.
        out: A folder that is not there yet, or empty.

    Returns:
        What was written; the config names the class of transformers that loads it.

    Raises:
        UserError: The folder holds something else, or transformers has no class for it.
    """
    _refuse_to_replace(out)
    loaded = load_model(folder)
    kind = loaded.config.backbone if loaded.kind == "backbone" else loaded.kind
    if kind not in HF_WRITERS:
        raise UserError(f"{folder} holds {kind}; transformers' format is written of {', '.join(HF_WRITERS)}")
    written = HF_WRITERS[kind](loaded.config, loaded.model, read_json(folder / "config.json"))
    export_weights(out, written.tensors, written.config)
    return written


def _refuse_to_replace(out: Path) -> None:
    """Writing puts a whole folder in the place of `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and would be replaced; give another --out, or delete it")
