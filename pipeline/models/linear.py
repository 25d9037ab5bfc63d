"""The linear map of all blocks; where a CPU only answers, by the faster of torch's two libraries.

M rows, K width in, N width out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

# torch has MKL multiply in float32, and MKL keeps to AVX2 on other makers' processors; oneDNN, which is in torch too,
# does not: 190 * 10^9 multiply-accumulates a second against 98 (325 rows, 768 x 3072, 2 cores of an AMD EPYC with
# AVX-512, torch 2.15), and with 10 rows 63 against 30. It is the operator that torch.compile calls.
_BY_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

# For less, what it takes to call it is more than what it saves.
_LEAST_WEIGHTS = 2**16

# oneDNN makes code for each size that it meets, half a millisecond or more each, and keeps up to three megabytes of it.
# What trimming leaves has any length, so packed rows are rounded up: 16 sizes from one power of two to the next at
# most, which is less than 7% more of 128 rows and above.
_FEW_ROWS, _FEW_STEP, _LEAST_STEP = 16, 4, 8


class Linear(nn.Linear):
    """`nn.Linear`, that answers by `linear` in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return F.linear(x, self.weight, self.bias) if self.training else linear(x, self.weight, self.bias)

    def then_gelu(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), with GELU (erf) after the map."""
        if self.training:
            return F.gelu(F.linear(x, self.weight, self.bias))
        return linear(x, self.weight, self.bias, gelu=True)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear`; float32 on a CPU without gradients by oneDNN, up to rounding the same.

    Args:
        x: (..., K).
        weight_NK: A slice of rows is as good as a whole weight, one of columns is left to `F.linear`.
        bias_N: None for none.
        gelu: Whether GELU (erf) follows, which oneDNN puts into the same pass.

    Returns:
        (..., N).
    """
    if not faster_by_onednn(x, weight_NK, bias_N):
        return F.gelu(F.linear(x, weight_NK, bias_N)) if gelu else F.linear(x, weight_NK, bias_N)
    rows_MK = rounded(x, weight_NK) if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    out_MN = torch.ops.mkldnn._linear_pointwise(rows_MK, weight_NK, bias_N, *after)
    return out_MN[: x.numel() // x.shape[-1]].view(*x.shape[:-1], -1)


def rounded(x: Tensor, weight_NK: Tensor) -> Tensor:
    """Packed rows as `linear` wants them for this weight, with zeros below, for several maps in turn; others as is.

    Padded streams have three dimensions and few sizes, so that nothing is computed for their sake.
    """
    if x.ndim != 2 or not faster_by_onednn(x, weight_NK):
        return x
    more = -len(x) % _step(len(x))
    return torch.cat([x, x.new_zeros(more, x.shape[1])]) if more else x


def _step(rows: int) -> int:
    """To a multiple of what so many rows are rounded up."""
    if rows <= _FEW_ROWS:
        return _FEW_STEP if rows > 1 else 1
    return max(_LEAST_STEP, 1 << (rows.bit_length() - 5))


def faster_by_onednn(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> bool:
    """Whether `linear` asks oneDNN."""
    return (
        _BY_ONEDNN
        and weight_NK.numel() >= _LEAST_WEIGHTS
        and x.dtype == weight_NK.dtype == torch.float32
        and x.device.type == weight_NK.device.type == "cpu"
        and not torch.is_grad_enabled()
        and weight_NK.is_contiguous()
        and (bias_N is None or bias_N.is_contiguous())  # it would be read as if it were
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


if _BY_ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
        """Two for each multiply-accumulate, as torch counts its own; with what rows are rounded up by."""
        return 2 * x_shape.numel() * weight_shape[0]
