"""uint8 pixels -> a model's input, on the device that they are on."""

from functools import cache

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(pixels_B3HW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 pixels -> float32 with mean and deviation taken out, (B, 3, H, W) or (B, 2, 3, H, W), where they are."""
    centre, spread = (_channels(tuple(values), pixels_B3HW.device) for values in (mean, std))
    return (pixels_B3HW.float() - centre) / spread


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1) of 255 levels; kept, as a GPU must come to rest before it takes numbers from Python."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1) * 255
