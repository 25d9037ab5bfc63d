"""Learning rates of a model's parts, by the beginning of their parameters' names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from data_prep.errors import UserError
from pipeline.engine import ParamGroup, split_decay
from pipeline.models.backbone import Backbone
from pipeline.models.config import TEMPERATURE_LIMITS


def scaled_groups(module: nn.Module, scales: Mapping[str, float]) -> list[ParamGroup]:
    """Weights with decay, biases and norms without, each at its part's rate.

    Args:
        module: Its trainable parameters are grouped.
        scales: Learning rates over the optimizer's, by the beginning of names; the longest that fits counts.
    """
    of = {id(p): scale_of(name, scales) for name, p in module.named_parameters()}
    groups = []
    for scale in sorted(set(of.values())):
        for group in split_decay(module, scale):
            params = tuple(p for p in group.params if of[id(p)] == scale)
            groups += [replace(group, params=params)] if params else []
    return groups


def bounded_temperature(groups: Sequence[ParamGroup], model: Backbone, scale: float) -> list[ParamGroup]:
    """The same with the contrast's temperature in a group of its own, the last, between its limits.

    Args:
        groups: Those of the model, the temperature somewhere among them.
        model: With contrastive features.
        scale: The temperature's learning rate over the optimizer's.
    """
    groups = [replace(group, params=tuple(p for p in group.params if p is not model.temp)) for group in groups]
    temperature = ParamGroup(params=(model.temp,), decay=False, lr_scale=scale, limits=TEMPERATURE_LIMITS)
    return [*(group for group in groups if group.params), temperature]


def scale_of(name: str, scales: Mapping[str, float]) -> float:
    """The scale of the longest part that a parameter's name begins with; 1 where none does."""
    parts = [part for part in scales if name == part or name.startswith(f"{part}.")]
    return scales[max(parts, key=len)] if parts else 1.0


def check_scales(key: str, scales: Mapping[str, float]) -> None:
    """Refuses rates that are not above 0.

    Raises:
        UserError: Naming the key.
    """
    for part, scale in scales.items():
        if not 0 < scale < float("inf"):
            raise UserError(f"{key}.{part}={scale} must be above 0")


def scales_that_count(model: Backbone, scales: Mapping[str, float]) -> dict[str, float]:
    """Those that say something of a model: a task's recipe slows the temperature of whichever backbone has one."""
    return {part: scale for part, scale in scales.items() if part != "temp" or model.has_contrast}


def check_lr_scales(model: Backbone, scales: Mapping[str, float], key: str = "pretrain.lr_scales") -> None:
    """Refuses parts that the model does not have.

    Args:
        model: May be without memory for its weights.
        scales: By part.
        key: Of the configuration.

    Raises:
        UserError: Naming the parts that there are.
    """
    known = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    for part in scales_that_count(model, scales):
        if part not in known:
            parts = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"{key} names {part!r}, which {model.config.backbone} has not; it has {parts}")
