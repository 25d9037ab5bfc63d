"""Momentum copies and queues in official checkpoints of ALBEF and BLIP: optional, and apart from the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_COPY = re.compile(r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj)_m\.(.+)")
_QUEUE = {
    "image_queue": "image",
    "text_queue": "text",
    "queue_ptr": "next",
    "ptr_queue": "next",
    "idx_queue": "ids",
}


@dataclass(frozen=True)
class Parts:
    """A checkpoint's tensors by what they are for, under foreign names.

    Attributes:
        online: The model itself.
        momentum: Its momentum copies, under the names of what they follow.
        queue: State of the feature queue, under the names of `FeatureQueue.tensors` and ``ids``.
        aside: Names as they stand in the file of all that is not the model itself.
    """

    online: dict[str, Tensor]
    momentum: dict[str, Tensor]
    queue: dict[str, Tensor]
    aside: tuple[str, ...]


def take_apart(tensors: Mapping[str, Tensor]) -> Parts:
    """Tells the model from what only its training needs."""
    online: dict[str, Tensor] = {}
    momentum: dict[str, Tensor] = {}
    queue: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _COPY.fullmatch(name):
            momentum[f"{match[1]}.{match[2]}"] = tensor
        elif name in _QUEUE:
            queue[_QUEUE[name]] = _plain(name, tensor)
        else:
            online[name] = tensor
    return Parts(online, momentum, queue, tuple(name for name in tensors if name not in online))


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Counters are stored as one element, ids as a row."""
    if "ptr" in name:
        return tensor.reshape(())
    return tensor.reshape(-1) if name == "idx_queue" else tensor
