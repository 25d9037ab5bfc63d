"""The same decisions run masked, as training has them, and packed, as inference has them: the same answers.

Decisions are drawn here and put into the trimmers' mouths, so that both ways are given the same ones whatever their
rounding, and the extremes are reached.

B batch, N tokens, T packed tokens, H heads.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.config import BackboneName
from pipeline.models.packing import spread
from pipeline.tasks.classification import Answers, ClassificationModel
from pipeline.trimming.smarttrim import GumbelGate
from pipeline.trimming.trimmers import HeadTrimmer, TokenTrimmer, TrimmerConfig
from tests.pipeline.small import scale, small_batch, small_model

ROWS = 5
PLACES = 17  # a picture's patches with CLS, which are more than the words
SHARES = {"all": 1.0, "chance": 0.6, "none": 0.0}


@pytest.fixture(params=[(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"])
def tolerance(request: pytest.FixtureRequest) -> object:
    dtype, tolerance = request.param
    torch.set_default_dtype(dtype)
    yield tolerance
    torch.set_default_dtype(torch.float32)


def model_of(backbone: BackboneName) -> ClassificationModel:
    """A model with biases: they begin as zero, which would hide one that is left out."""
    model = ClassificationModel(small_model(backbone), TrimmerConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def decided(model: ClassificationModel, tokens: str, heads: str) -> None:
    """Has every trimmer say what is drawn for it."""
    assert model.trimmers is not None
    draw = torch.Generator().manual_seed(0)
    for module in model.trimmers.modules():
        if isinstance(module, TokenTrimmer):
            kept_BN = torch.rand(ROWS, PLACES, generator=draw) < SHARES[tokens]
            module.register_forward_hook(partial(say_tokens, kept_BN=kept_BN))
        elif isinstance(module, HeadTrimmer):
            drawn_BH = torch.rand(ROWS, module.score[-1].out_features, generator=draw)  # type: ignore[arg-type]
            one_BH = functional.one_hot(drawn_BH.argmax(1), drawn_BH.shape[1]).bool()
            kept_BH = one_BH if heads == "one" else drawn_BH < SHARES[heads]
            module.register_forward_hook(partial(say_heads, kept_BH=kept_BH))


def say_tokens(_: object, given: tuple[Any, ...], scores: Tensor, kept_BN: Tensor) -> Tensor:
    """Scores (B, N) or (T,), found by where the tokens came from; CLS stays anyhow."""
    rows = spread(torch.arange(ROWS)[:, None], given[0])[..., 0]
    return said(scores, kept_BN[rows, given[0].origin])


def say_heads(_: object, __: tuple[Any, ...], scores_BH: Tensor, kept_BH: Tensor) -> Tensor:
    return said(scores_BH, kept_BH)


def said(scores: Tensor, kept: Tensor) -> Tensor:
    """With the trimmer's gradient, which has masks carry one as in training."""
    return 0 * scores + torch.where(kept, 1.0, -1.0).to(scores.dtype)


@pytest.mark.parametrize(
    ("tokens", "heads"),
    [("chance", "chance"), ("all", "all"), ("chance", "one"), ("none", "chance"), ("all", "none"), ("none", "none")],
)
@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_the_same_decisions_give_the_same_answers(
    backbone: BackboneName, tokens: str, heads: str, tolerance: float
) -> None:
    model, batch = model_of(backbone), small_batch(ROWS)
    decided(model, tokens, heads)
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    masked: Answers = model.train()(*inputs, GumbelGate(0.0, 1.0), True)
    packed = model.eval().trimming(*inputs[1:])
    assert packed is not None and masked.trimmed_BA is not None and masked.trimmed_BA.requires_grad
    with torch.no_grad():
        answers_BA = model.classify(*inputs, [packed])
    torch.testing.assert_close(answers_BA, masked.trimmed_BA.detach(), rtol=tolerance, atol=tolerance)
    assert (tokens == heads == "all") == torch.allclose(answers_BA, masked.full_BA, rtol=tolerance, atol=tolerance)
    assert packed.decisions.keys() == masked.decisions.keys()
    for name, decision in packed.decisions.items():
        other = masked.decisions[name]
        assert torch.equal(decision.tokens_B, other.tokens_B.long())
        assert tokens != "none" or not decision.tokens_B.any()
        for found_BH, wanted_BH in ((decision.self_BH, other.self_BH), (decision.cross_BH, other.cross_BH)):
            assert (found_BH is None) == (wanted_BH is None)
            if found_BH is not None and wanted_BH is not None:
                assert torch.equal(found_BH, wanted_BH)
                assert heads != "one" or (found_BH.sum(1) == 1).all()
