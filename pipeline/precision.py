"""In which precision a trained model is evaluated, and where autocast's 16 bits are not enough."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bf16"]


def products_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What a model is evaluated under; bf16 is autocast, whose copies of weights live as long as this."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def at_least_float32(x: Tensor) -> Tensor:
    """Raises 16-bit numbers to float32 and leaves wider ones alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
