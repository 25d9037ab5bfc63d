"""Copies of tensors in host memory, for what is written while training goes on."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """Copies in memory that is used again for the next ones."""

    def __init__(self) -> None:
        self._rooms: dict[str, Tensor] = {}

    def copy(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now; until the next call of the same group."""
        copies = {name: self._copy(f"{group}/{name}", tensor.detach()) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        room = self._rooms.get(name)
        if room is None or room.shape != tensor.shape or room.dtype != tensor.dtype:
            # Page-locked memory is copied to at full speed, and while other copies are under way.
            room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._rooms[name] = room
        return room.copy_(tensor, non_blocking=tensor.is_cuda)
