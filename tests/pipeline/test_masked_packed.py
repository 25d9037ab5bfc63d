"""The same decisions run masked, as training has them, and packed, as inference has them: the same answers.

Decisions are drawn here and put into the trimmers' mouths, so that both ways are given the same ones whatever their
rounding, and the extremes are reached. What trimmers decide by themselves is held against each other at the end.

B batch, N tokens, T packed tokens, H heads.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.build import build_model
from pipeline.models.config import BackboneName, FusionConfig
from pipeline.models.packing import spread
from pipeline.tasks.classification import Answers, ClassificationModel
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import Decision, GumbelGate, MaskedTrimming, PackedTrimming
from pipeline.trimming.trimmers import HeadTrimmer, TokenTrimmer, TrimmerConfig
from tests.pipeline.small import scale, small_batch, small_config, small_model

ROWS = 5
PLACES = 65  # a picture's patches with CLS at most, which are more than the words
MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)  # about half of everything goes
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


def wide_model(backbone: BackboneName) -> ClassificationModel:
    """One layer or two of each part as wide as a base model's: maps of 98,304 weights and more."""
    small, width = small_config(backbone=backbone), {"width": 768, "heads": 12}
    text = replace(small.text, **width, text_layers=1, fusion_layers=min(1, small.text.fusion_layers))
    vision = replace(small.vision, **width, height=64, width_px=64, depth=2)
    torch.manual_seed(0)
    model = build_model(replace(small, text=text, vision=vision, fusion=FusionConfig(**width)))
    return ClassificationModel(model, TrimmerConfig())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN has the one way only")
@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_wide_maps_that_onednn_multiplies_give_the_answers_of_training(backbone: BackboneName) -> None:
    """As above in float32, packed by oneDNN (`pipeline.models.linear`), which small models never ask."""
    model, batch = wide_model(backbone), small_batch(ROWS)
    decided(model, "chance", "chance")
    pixels = scale(batch.pixels).repeat_interleave(2, 2).repeat_interleave(2, 3)
    inputs = pixels, batch.token_ids, batch.token_mask
    assert len(batch.token_mask.sum(1).unique()) > 1
    masked: Answers = model.train()(*inputs, GumbelGate(0.0, 1.0), False)
    packed = model.eval().trimming(*inputs[1:])
    assert packed is not None and masked.trimmed_BA is not None and masked.trimmed_BA.requires_grad
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        answers_BA = model.classify(*inputs, [packed])
    torch.testing.assert_close(answers_BA, masked.trimmed_BA.detach(), rtol=1e-5, atol=1e-5)
    by_onednn = counter.get_flop_counts()["Global"][torch.ops.mkldnn._linear_pointwise]
    assert by_onednn > 0.9 * counter.get_total_flops()


EDGE = 1e-4
MANY = 64


def kept_of(decision: Decision, row: int) -> list[int]:
    """Where the tokens that an instance keeps came from."""
    assert decision.origin is not None
    if decision.offsets is not None:
        return decision.origin[decision.offsets[row] : decision.offsets[row + 1]].tolist()
    assert decision.present_BN is not None
    return decision.origin[row][decision.present_BN[row].bool()].tolist()


def heads_of(decision: Decision, row: int) -> list[list[float]]:
    """Which heads of an instance work."""
    return [each[row].tolist() for each in (decision.self_BH, decision.cross_BH) if each is not None]


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_trimmers_decide_alike_where_no_score_lies_at_the_edge(backbone: BackboneName, seed: int) -> None:
    """In float32, where both ways round differently: instances whose scores are all further from 0 than that."""
    model, batch = ClassificationModel(small_model(backbone, seed), MIXED).eval(), small_batch(MANY, seed)
    assert model.trimmers is not None
    nearest: list[Tensor] = []

    def watch(module: nn.Module, given: tuple[Any, ...], scores: Tensor) -> None:
        far = scores.abs()
        if isinstance(module, TokenTrimmer):  # CLS stays whatever its score, and what is gone has none
            there = torch.ones_like(scores) if given[0].present is None else given[0].present
            far = far.where(there.bool(), torch.inf)[:, 1:]
        nearest.append(far.amin(1))

    watched = [each for each in model.trimmers.modules() if isinstance(each, TokenTrimmer | HeadTrimmer)]
    hooks = [each.register_forward_hook(watch) for each in watched]
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    masked, packed = MaskedTrimming(model.trimmers), PackedTrimming(model.trimmers)
    masked_BA = model.classify(*inputs, [masked])
    for hook in hooks:
        hook.remove()
    packed_BA = model.classify(*inputs, [packed])
    sure = [row for row, far in enumerate(torch.stack(nearest).amin(0).tolist()) if far > EDGE]
    assert len(nearest) == len(watched) and len(sure) > 0.8 * MANY
    for row in sure:
        for name, decision in masked.decisions.items():
            assert kept_of(decision, row) == kept_of(packed.decisions[name], row), (name, row)
            assert heads_of(decision, row) == heads_of(packed.decisions[name], row), (name, row)
    torch.testing.assert_close(masked_BA[sure], packed_BA[sure], rtol=1e-5, atol=1e-5)
    shares = model.cost_model().kept_shares(packed.decisions, units_of(model.backbone, batch.token_mask))
    assert all(0.05 < float(share) < 0.95 for share in shares.values()), shares
