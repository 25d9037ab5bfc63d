"""How many bytes a forward keeps for its backward."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd saves while `forward` runs.

    A storage counts once, and whole, however many tensors look into it: that is what stays allocated.

    Args:
        forward: Computes something with a gradient.
        parameters: Tensors that are there in any case and do not count.
    """
    ignored = {_address(parameter) for parameter in parameters}
    # Kept until the end, so that no address is given out a second time.
    storages: dict[int, torch.UntypedStorage] = {}

    def look(tensor: Tensor) -> Tensor:
        if _address(tensor) not in ignored:
            storages[_address(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
