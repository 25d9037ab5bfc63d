"""`linear` against `torch.nn.functional.linear`: equal up to rounding, gradients and 16 bits left to torch."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import linear as subject
from pipeline.models.linear import Linear, linear, rounded

SIDE = 256  # its square is `_LEAST_WEIGHTS`


def weights(out: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(out, SIDE) / 16, torch.randn(out)


class Heard(TorchDispatchMode):
    """Notes what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    with Heard() as heard:
        linear(x, weight, bias)
    assert heard.names
    return "mkldnn::_linear_pointwise" in heard.names


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 63, 64, 65, 80, 511, 512, 513])
@pytest.mark.parametrize("biased", [True, False])
@torch.inference_mode()
def test_every_number_of_rows_gives_what_torch_gives(rows: int, biased: bool) -> None:
    weight, bias = weights()
    x = torch.randn(rows, SIDE)
    expected = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    found = linear(x, weight, bias if biased else None)
    assert found.shape == expected.shape and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("out", [1, SIDE - 1, SIDE])
@torch.no_grad()
def test_gelu_in_the_same_pass_is_torchs(out: int) -> None:
    """Of narrow maps too, which are left to torch."""
    layer = Linear(SIDE, out).eval()
    x = torch.randn(9, SIDE)
    expected = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    torch.testing.assert_close(layer.then_gelu(x).double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(layer.train().then_gelu(x), F.gelu(F.linear(x, layer.weight, layer.bias)))


@torch.inference_mode()
def test_leading_dimensions_slices_and_rows_apart_are_as_good() -> None:
    weight, bias = weights(2 * SIDE)
    x = torch.randn(3, 10, 2 * SIDE)[:, ::2, :SIDE]
    for rows in (slice(None), slice(100, 400)):
        torch.testing.assert_close(linear(x, weight[rows], bias[rows]), F.linear(x, weight[rows], bias[rows]))
    every_second = torch.randn(2 * SIDE)[::2]
    torch.testing.assert_close(linear(x, weight[:SIDE], every_second), F.linear(x, weight[:SIDE], every_second))
    columns = torch.randn(SIDE, 3 * SIDE)[:, SIDE : 2 * SIDE]
    torch.testing.assert_close(linear(x, columns, bias[:SIDE]), F.linear(x, columns, bias[:SIDE]))


@pytest.mark.skipif(not subject._BY_ONEDNN, reason="this torch has no oneDNN")
def test_onednn_is_asked_in_float32_without_gradients_and_for_weights_that_are_worth_it() -> None:
    weight, bias = weights()
    x = torch.randn(9, SIDE)
    assert not by_onednn(x, weight, bias)
    with torch.no_grad():
        assert by_onednn(x, weight, bias)
        assert not by_onednn(x, weight[:-1], bias[:-1])
        assert not by_onednn(x.double(), weight.double(), bias.double())
        assert not by_onednn(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
        assert not by_onednn(x[:0], weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            assert not by_onednn(x, weight, bias)


def test_a_layer_that_is_trained_is_torchs_to_the_bit() -> None:
    torch.manual_seed(0)
    layer = Linear(SIDE, SIDE)
    assert isinstance(layer, nn.Linear) and set(layer.state_dict()) == {"weight", "bias"}
    x = torch.randn(9, SIDE)
    with torch.no_grad():  # a momentum tower is in training mode and has no gradients
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        torch.testing.assert_close(layer.eval()(x), F.linear(x, layer.weight, layer.bias))
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_packed_rows_have_few_sizes_and_padded_ones_their_own() -> None:
    """Each size that oneDNN meets takes memory for good."""
    weight = torch.empty(SIDE, SIDE)
    sizes = [len(rounded(torch.empty(1, SIDE).expand(rows, SIDE), weight)) for rows in range(1, 3000)]
    assert all(rows <= size <= max(1.07 * rows, rows + 7) for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 110 and len({size for size in sizes if size <= 336}) < 45
    assert len(rounded(torch.empty(1, 325, SIDE), weight)) == 1


@torch.inference_mode()
def test_torch_counts_what_onednn_does() -> None:
    weight, bias = weights()
    with FlopCounterMode(display=False) as counter:
        linear(torch.randn(16, SIDE), weight, bias)
    assert counter.get_total_flops() == 2 * 16 * SIDE * SIDE
