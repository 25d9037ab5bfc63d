"""Reading an official checkpoint of ALBEF or BLIP: sizes, position table, model, momentum copies, queue."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.backbone import Backbone
from pipeline.models.config import ModelConfig
from pipeline.weights.loaded import Hints, Loaded
from pipeline.weights.mapping import Imported, NameMap, fill, import_tensors
from pipeline.weights.momentum import Parts, take_apart
from pipeline.weights.sizes import new_model, with_positions


def read_official(
    tensors: Mapping[str, Tensor],
    name_map: NameMap,
    sizes: Callable[[Mapping[str, Tensor], Hints], ModelConfig],
    build: tuple[str, Callable[[ModelConfig], Backbone]],
    hints: Hints,
    keep_momentum: bool,
    lacking: Sequence[str] = (),
) -> Loaded:
    """A model with the weights of a file.

    Args:
        tensors: By their official names. On the meta device nothing is stored, and names and shapes are checked.
        name_map: To our names.
        sizes: Tells the sizes from the tensors under our names.
        build: The kind and the class of the model.
        hints: What the file cannot tell.
        keep_momentum: Whether momentum copies and the queue are kept; otherwise they are listed as dropped.
        lacking: Heads, by our names, that the file has not and that stay as drawn.

    Raises:
        UserError: Names are missing or unknown, or tensors do not fit.
    """
    parts = take_apart(tensors)
    imported = import_tensors(parts.online, name_map)
    config = sizes(imported.tensors, hints)
    kind, make = build
    model = new_model(make, config, imported.tensors)
    own = with_positions(imported.tensors, config.vision)
    fill(model, own, [f"{name}." for name in lacking], imported.unknown)
    momentum = _momentum_of(parts, name_map, config, model) if keep_momentum else Imported()
    aside = () if keep_momentum else parts.aside
    return Loaded(
        kind=kind,
        config=config,
        model=model.eval(),
        momentum=momentum.tensors,
        queue=parts.queue if keep_momentum else {},
        dropped=(*imported.dropped, *momentum.dropped, *aside),
        lacking=tuple(lacking),
    )


def _momentum_of(parts: Parts, name_map: NameMap, config: ModelConfig, model: Backbone) -> Imported:
    """The copies under our names: none, or at least all that a momentum tower has."""
    if not parts.momentum:
        return Imported()
    imported = import_tensors(parts.momentum, name_map)
    tensors = with_positions(imported.tensors, config.vision)
    online = model.state_dict()
    fits = {name for name, tensor in tensors.items() if name in online and online[name].shape == tensor.shape}
    wanted = {name for name in online if name.startswith(tuple(f"{part}." for part in model.averaged))}
    wrong = sorted((wanted | set(tensors)) - fits) + imported.unknown
    if wrong:
        listed = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise UserError(f"the momentum copies do not fit the model ({listed}); import without them")
    return Imported({name: torch.clone(tensor) for name, tensor in tensors.items()}, imported.dropped)
