"""Where this process stands among the processes of a job."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of `world_size` training processes; every launcher makes the same object.

    Attributes:
        rank: Number of this process, from 0.
        world_size: How many processes train together.
        local_rank: Number among those on this machine; chooses the GPU.
        device: Torch's device string, such as ``cpu`` or ``cuda:0``.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """True on the one process that logs and writes what is whole."""
        return self.rank == 0

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's object."""
        return torch.device(self.device)
