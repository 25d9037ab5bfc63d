"""The linear map of all blocks; where a CPU only answers, by the faster of torch's two libraries.

M rows, K width in, N width out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

# torch has MKL multiply in float32, and MKL keeps to AVX2 on other makers' processors; oneDNN, which is in torch too,
# does not: 190 * 10^9 multiply-accumulates a second against 98 (325 rows, 768 x 3072, 2 cores of an AMD EPYC with
# AVX-512, torch 2.15), and with 10 rows 63 against 30. It is the operator that torch.compile calls.
_BY_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

# For less, what it takes to call it is more than what it saves.
_LEAST_WEIGHTS = 2**16

# oneDNN makes code for each size that it meets, half a millisecond each, and keeps the last 1,024 (it says
# ONEDNN_PRIMITIVE_CACHE_CAPACITY for another number), a quarter to half a megabyte each. What trimming leaves has any
# length, so rows are rounded up to a multiple of the number beside the first bound that they do not pass.
_ROUNDED = ((1, 1), (16, 4), (64, 8), (512, 16))


class Linear(nn.Linear):
    """`nn.Linear`, that answers by `linear` in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return F.linear(x, self.weight, self.bias) if self.training else linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`; float32 on a CPU without gradients by oneDNN, up to rounding the same.

    Args:
        x: (..., K).
        weight_NK: A slice of rows is as good as a whole weight, one of columns is left to `F.linear`.
        bias_N: None for none.

    Returns:
        (..., N).
    """
    if not _faster_by_onednn(x, weight_NK):
        return F.linear(x, weight_NK, bias_N)
    rows_MK = rounded(x.reshape(-1, x.shape[-1]), weight_NK)
    out_MN = torch.ops.mkldnn._linear_pointwise(rows_MK, weight_NK, bias_N, "none", [], "")
    return out_MN[: x.numel() // x.shape[-1]].view(*x.shape[:-1], -1)


def rounded(x: Tensor, weight_NK: Tensor) -> Tensor:
    """Rows as `linear` wants them for this weight, with zeros below, for several maps in turn; others as they are."""
    if x.ndim != 2 or not _faster_by_onednn(x, weight_NK):
        return x
    more = -len(x) % next((step for bound, step in _ROUNDED if len(x) <= bound), 1)
    return F.pad(x, (0, 0, 0, more)) if more else x


def _faster_by_onednn(x: Tensor, weight_NK: Tensor) -> bool:
    return (
        _BY_ONEDNN
        and weight_NK.numel() >= _LEAST_WEIGHTS
        and x.dtype == weight_NK.dtype == torch.float32
        and x.device.type == weight_NK.device.type == "cpu"
        and not torch.is_grad_enabled()
        and weight_NK.is_contiguous()
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


if _BY_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
        """Two for each multiply-accumulate, as torch counts its own."""
        return 2 * x_shape.numel() * weight_shape[0]
