"""What a run is of, in a few words from its configuration."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

Fact = tuple[str, str]


def recipe_facts(config: Mapping[str, Any]) -> list[Fact]:
    """Backbone with its sizes, pruning, tasks with trimming and targets; what is not said is left out."""
    model, given = _at(config, "model"), config.get("pretrained")
    vision = _at(model, "vision")
    sizes = [f"{vision[key]} {words}" for key, words in _SIZES.items() if isinstance(vision.get(key), int)]
    pruning = _at(config, "pretrain", "pruning").get("method")
    told = [
        ("Backbone", ", ".join([str(model["backbone"]), *sizes]) if model.get("backbone") else ""),
        ("Given model", PurePath(given).name if isinstance(given, str) else ""),
        ("Pruning kept" if given else "Pruning in pre-training", str(pruning or "")),
        *_trimmed("", _at(config, "trim")),
    ]
    for name in _at(config, "tasks"):
        told += _trimmed(f" of {name}", _at(config, "tasks", name, "trim"))
    return [(name, text) for name, text in told if text]


def began_from_weights(config: Mapping[str, Any]) -> bool:
    """Whether the vision tower of pre-training began from weights, which `analyse attention` holds it against."""
    init = _at(config, "pretrain", "init")
    return bool(init.get("vision") or init.get("model"))


def _trimmed(whose: str, trim: Mapping[str, Any]) -> list[Fact]:
    targets = trim.get("targets")
    return [
        (f"Task{whose}", str(trim.get("task") or "")),
        (f"Trimming{whose}", str(trim.get("method") or "") if targets else ""),
        (f"Targets{whose}", ", ".join(map(_target, targets)) if isinstance(targets, list) else ""),
    ]


_SIZES = {"width": "wide", "depth": "vision layers", "width_px": "px"}


def _at(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _target(value: Any) -> str:
    return f"{value}x" if isinstance(value, int | float) else str(value)
