"""On which machine a figure was measured: those of different machines are not to be held against each other unsaid."""

from importlib.metadata import version
from typing import TypedDict

import torch

from data_prep.machine import available_cpus, processor


class Where(TypedDict):
    """A machine, as far as times and memory hang on it: its device (``cpu`` without a GPU), its CPUs, and torch."""

    device: str
    processor: str
    cpus: int
    torch: str


def where(device: torch.device) -> Where:
    """The machine of this process.

    Args:
        device: That it measures on.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Where(device=name, processor=processor(), cpus=available_cpus(), torch=version("torch"))
