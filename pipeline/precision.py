"""Where autocast's 16 bits are not enough."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Raises 16-bit numbers to float32 and leaves wider ones alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
