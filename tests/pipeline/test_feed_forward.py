"""The feed-forward part in pieces against the two maps at once; gradients and training left to torch."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.models import feed_forward as subject
from pipeline.models.feed_forward import Activation, Mlp

WIDTH, HIDDEN = 256, 512
AT_ONCE = 40  # rows


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_HIDDEN_AT_ONCE", AT_ONCE * HIDDEN)
    torch.manual_seed(0)


def plainly(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(x, mlp.fc1.weight, mlp.fc1.bias)
    hidden = F.gelu(hidden) if mlp.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
    return F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("shape", [(1,), (39,), (40,), (41,), (123,), (3, 41), (1, 7), (2, 3, 20)])
def test_pieces_are_the_whole(activation: Activation, shape: tuple[int, ...]) -> None:
    mlp = Mlp(WIDTH, HIDDEN, activation).eval()
    x = torch.randn(*shape, WIDTH)
    kept = x.clone()
    wanted = plainly(mlp.double(), x.double())
    with torch.inference_mode():
        found = mlp.float()(x)
    assert found.shape == x.shape and torch.equal(x, kept)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_with_a_gradient_it_is_torchs_to_the_bit(activation: Activation, training: bool) -> None:
    mlp = Mlp(WIDTH, HIDDEN, activation).train(training)
    x = torch.randn(99, WIDTH, requires_grad=True)
    gradients = []
    for run in (mlp, lambda x: plainly(mlp, x)):
        found = run(x)
        gradients.append((found, *torch.autograd.grad(found.square().sum(), [x, *mlp.parameters()])))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_nothing_and_16_bits_pass() -> None:
    mlp = Mlp(WIDTH, HIDDEN, "quick_gelu").eval()
    with torch.inference_mode():
        assert mlp(torch.randn(0, WIDTH)).shape == (0, WIDTH)
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.randn(99, WIDTH)
            torch.testing.assert_close(mlp(x).float(), plainly(mlp, x).float(), rtol=0, atol=2e-2)
