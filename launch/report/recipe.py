"""What a run is of, in a few words from its configuration."""

from collections.abc import Mapping
from typing import Any

Fact = tuple[str, str]


def recipe_facts(config: Mapping[str, Any]) -> list[Fact]:
    """Backbone with its sizes, pruning, trimming, task and targets; what the configuration does not say is left out."""
    model, trim = _at(config, "model"), _at(config, "trim")
    vision = _at(model, "vision")
    sizes = [f"{vision[key]} {words}" for key, words in _SIZES.items() if isinstance(vision.get(key), int)]
    pruning = _at(config, "pretrain", "pruning").get("method")
    targets = trim.get("targets")
    told = [
        ("Backbone", ", ".join([str(model["backbone"]), *sizes]) if model.get("backbone") else ""),
        ("Pruning in pre-training", str(pruning or "")),
        ("Task", str(trim.get("task") or "")),
        ("Trimming", str(trim.get("method") or "") if targets else ""),
        ("Targets", ", ".join(map(_target, targets)) if isinstance(targets, list) else ""),
    ]
    return [(name, text) for name, text in told if text]


_SIZES = {"width": "wide", "depth": "vision layers", "width_px": "px"}


def _at(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _target(value: Any) -> str:
    return f"{value}x" if isinstance(value, int | float) else str(value)
