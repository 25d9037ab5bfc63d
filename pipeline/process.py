"""Where this process stands among the processes of a job."""

import platform
from dataclasses import dataclass

import torch

from data_prep.errors import UserError


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

    def claim_device(self) -> None:
        """Makes this process's GPU the one that torch and nccl use where none is named, which else is the first.

        Raises:
            UserError: There is no such GPU.
        """
        device = self.torch_device
        if device.type != "cuda":
            return
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(
                f"rank {self.rank} is to train on {device}, but {platform.node()} has {count} GPUs that it may use; "
                "start fewer processes there, or set --cluster.gpus_per_worker 0"
            )
        torch.cuda.set_device(device)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's object."""
        return torch.device(self.device)
