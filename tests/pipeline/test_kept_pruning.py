"""A backbone that keeps ELIP while it is trimmed: masked as packed, what it costs, exports, and where it is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.exports import describe_method, load_classification_model
from pipeline.models.config import BackboneName
from pipeline.models.packing import of_rows, pack, unpack
from pipeline.models.schedule import TokenStream
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.selection import apply_selection, select
from pipeline.tasks.classification import ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.trim_config import TrimConfig
from pipeline.trimming.cost import solve_share, units_of
from pipeline.trimming.methods import MethodName
from pipeline.trimming.smarttrim import Decision, MaskedTrimming, PackedTrimming
from pipeline.trimming.trimmers import Policy, TrimmerConfig
from pipeline.worker import parse
from tests.pipeline.small import scale, small_batch, small_model

BACKBONES: tuple[BackboneName, ...] = ("albef", "blip", "meter")
ELIP = ElipConfig(depths=(2, 1, 1, 2), ratios=(0.8, 0.5, 0.25))  # 16 patches: 12, 8, 4 stay
MIXED = TrimmerConfig(keep_bias=0.3, last_std=0.5, width_share=0.2)  # about half of everything goes
TRIM: dict[str, Any] = {"loop": {"samples": 8, "global_batch": 4}}


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_of(
    trimmers: TrimmerConfig | None, backbone: BackboneName = "albef", elip: ElipConfig = ELIP, seed: int = 0
) -> ClassificationModel:
    own = small_model(backbone, seed, depth=6)
    return ClassificationModel(own, trimmers, pruning=elip).eval()


def arguments(size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch = small_batch(size, seed)
    return scale(batch.pixels), batch.token_ids, batch.token_mask


def alike(one: dict[str, Decision], other: dict[str, Decision]) -> None:
    for name, decision in one.items():
        torch.testing.assert_close(decision.tokens_B, other[name].tokens_B.to(decision.tokens_B.dtype))
        for kind in ("self_BH", "cross_BH"):
            torch.testing.assert_close(getattr(decision, kind), getattr(other[name], kind))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bias", [-9.0, 0.3, 9.0])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("guidance", ["query", "stage"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_masked_and_packed_execution_agree(
    backbone: BackboneName, guidance: Literal["query", "stage"], merge: bool, bias: float, seed: int
) -> None:
    elip = replace(ELIP, guidance=guidance, merge=merge)
    model = model_of(replace(MIXED, keep_bias=bias), backbone, elip, seed)
    inputs = arguments(5, seed)
    masked, packed = MaskedTrimming(model.trimmers), PackedTrimming(model.trimmers)  # type: ignore[arg-type]
    torch.testing.assert_close(
        model.classify(*inputs, [masked]), model.classify(*inputs, [packed]), rtol=1e-9, atol=1e-9
    )
    alike(masked.decisions, packed.decisions)
    cost, units = model.cost_model(), units_of(model.backbone, inputs[2])
    torch.testing.assert_close(cost.of(masked.decisions, units), cost.of(packed.decisions, units))


def test_an_instance_is_judged_alike_alone_and_among_others() -> None:
    model, (pixels, ids, mask) = model_of(MIXED), arguments(6)
    together = model.classify(pixels, ids, mask, [PackedTrimming(model.trimmers)])  # type: ignore[arg-type]
    for row in range(6):
        one = slice(row, row + 1)
        alone = model.classify(pixels[one], ids[one], mask[one], [PackedTrimming(model.trimmers)])  # type: ignore[arg-type]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_where_nothing_is_trimmed_the_answers_are_the_pruned_models(backbone: BackboneName) -> None:
    model, inputs = model_of(TrimmerConfig(), backbone), arguments(4)
    pruned = model.classify(*inputs, [])
    torch.testing.assert_close(model.classify(*inputs, [MaskedTrimming(model.trimmers)]), pruned)  # type: ignore[arg-type]
    plain = ClassificationModel(model.backbone, None)
    plain.cls_head = model.cls_head
    assert not torch.allclose(plain.classify(*inputs, []), pruned)


@pytest.mark.parametrize("guidance", ["query", "stage"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_full_cost_is_what_torchs_flop_counter_counts(
    backbone: BackboneName, guidance: Literal["query", "stage"]
) -> None:
    model, (pixels, ids, mask) = model_of(None, backbone, replace(ELIP, guidance=guidance)), arguments(1, 3)
    length = int(mask.sum())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.classify(pixels, ids[:, :length], mask[:, :length], [])
    units = units_of(model.backbone, mask)
    assert counter.get_total_flops() == 2 * int(model.full_macs(units))
    assert model.full_macs(units) < model.unpruned_macs(units)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pruned_and_trimmed_it_costs_what_torchs_flop_counter_counts(backbone: BackboneName) -> None:
    model, (pixels, ids, mask) = model_of(replace(MIXED, keep_bias=2.0), backbone), arguments(1, 3)
    length = int(mask.sum())
    trimming = PackedTrimming(model.trimmers)  # type: ignore[arg-type]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.classify(pixels, ids[:, :length], mask[:, :length], [trimming])
    macs = float(model.macs(trimming.decisions, units_of(model.backbone, mask)))
    assert counter.get_total_flops() == pytest.approx(2 * macs, rel=0.01)


def test_shares_count_from_what_pruning_leaves() -> None:
    model, inputs = model_of(TrimmerConfig(keep_bias=9.0)), arguments(3)
    trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
    model.classify(*inputs, [trimming])
    shares = model.cost_model().kept_shares(trimming.decisions, units_of(model.backbone, inputs[2]))
    assert {name: float(share) for name, share in shares.items()} == dict.fromkeys(shares, 1.0)
    assert [int(trimming.decisions[f"vision_{layer}_image"].tokens_B[0]) for layer in range(6)] == [16, 16, 13, 9, 5, 5]


def test_the_solved_share_reaches_the_target_from_the_pruned_model() -> None:
    model, inputs = model_of(TrimmerConfig(width_share=0.05)), arguments(6)
    cost, units = model.cost_model(), units_of(model.backbone, inputs[2])
    share = solve_share(cost, units, 1.5)
    assert float(cost.full(units).mean() / cost.at_share(units, share).mean()) == pytest.approx(1.5, rel=5e-3)


def test_every_trimmer_learns_through_the_pruning_that_follows_it() -> None:
    model, batch = model_of(TrimmerConfig()), small_batch(6)
    task = ClassificationTask(model, scale, 1.5, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    task.losses(model, batch, 0.3).total.backward()
    assert model.trimmers is not None
    for name, parameter in model.trimmers.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_is_not_there_is_neither_kept_nor_merged() -> None:
    score = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.0, 0.6, 0.0]])
    present = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 0]])
    chosen = select(score, 2, True, present)
    assert chosen.kept_BK.tolist() == [[0, 1], [0, 2]]
    assert chosen.present_BK is not None and chosen.present_BK.tolist() == [[1, 1, 1], [1, 1, 0]]
    merged = apply_selection(torch.arange(10.0).reshape(2, 5, 1), chosen)[:, -1, 0]
    torch.testing.assert_close(merged, torch.tensor([(3 * 0.2 + 4 * 0.1) / (0.3 + 1e-6), 0.0]))
    without = select(score, 3, False, present)
    assert without.present_BK is not None and without.present_BK.sum(1).tolist() == [3, 2]


def test_packed_streams_are_padded_again_as_they_were() -> None:
    x, present = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    stream = TokenStream(x, present, origin=torch.tensor([[-1, 0, 1, 0], [-1, 0, 1, 2]]))
    again = unpack(pack(stream))
    assert torch.equal(again.x, x * present[..., None])
    assert again.present is not None and torch.equal(again.present, present)
    assert again.origin is not None and torch.equal(again.origin, stream.origin)  # type: ignore[arg-type]
    assert unpack(stream) is stream


def test_rows_that_share_instances_get_their_tokens_padded_or_packed() -> None:
    x, present = torch.randn(3, 4, 2), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    stream, rows = TokenStream(x, present, torch.arange(12).view(3, 4)), torch.tensor([2, 0, 0, 1, 2])
    padded = of_rows(replace(stream, rows=rows))
    assert torch.equal(padded.x, x[rows]) and padded.rows is None
    packed, wanted = of_rows(replace(pack(stream), rows=rows)), pack(padded)
    assert torch.equal(packed.x, wanted.x) and packed.offsets == wanted.offsets and packed.rows is None
    assert torch.equal(packed.origin, wanted.origin)  # type: ignore[arg-type]
    assert of_rows(stream) is stream


@pytest.mark.parametrize("trimmers", [None, MIXED])
def test_an_export_is_pruned_as_it_was_trained(trimmers: TrimmerConfig | None, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    model, inputs = model_of(trimmers, "meter"), arguments(4)
    described = {"kind": "statement", "model": asdict(model.backbone.config), "target": 2.0}
    described |= describe_method(model, "smarttrim")
    export_weights(tmp_path / "export", model.state_dict(), json.loads(json.dumps(described)))
    loaded, _ = load_classification_model(tmp_path / "export")
    answers = []
    for each in (model, loaded):
        trimming = each.trimming(*inputs[1:])
        answers.append(each.classify(*inputs, [] if trimming is None else [trimming]))
    torch.testing.assert_close(answers[0], answers[1])
    assert loaded.pruning is not None and loaded.pruning.elip == ELIP


UNKEPT = ("meter", None, "evit", "elip")
"""Speed-ups of this one count from another full model than those of methods that keep the pruning."""


@pytest.mark.parametrize(
    ("backbone", "keep", "method", "pruning", "kept"),
    [
        ("meter", None, "smarttrim", "elip", True),
        ("meter", False, "smarttrim", "elip", False),
        ("meter", None, "evit", "elip", False),
        ("meter", None, "smarttrim", "tome", False),
        ("albef", None, "smarttrim", "elip", False),
        ("blip", True, "grad_all", "elip", True),
        ("albef", True, "evit", "elip", None),
        ("albef", True, "random", "elip", None),
        ("meter", True, "smarttrim", "none", None),
    ],
)
def test_what_a_backbone_keeps_is_config_with_a_default_of_its_own(
    backbone: str, keep: bool | None, method: MethodName, pruning: str, kept: bool | None
) -> None:
    config = parse(TrimConfig, {**TRIM, "method": method, "keep_pruning": keep, "targets": [1.0, 2.0]})
    before = PruningConfig(method=pruning, elip=ELIP)  # type: ignore[arg-type]
    if kept is None:
        with pytest.raises(UserError, match=f"keep_pruning=true .*given: {pruning}.*given: {method}"):
            config.kept_pruning(backbone, before)
    else:
        assert config.kept_pruning(backbone, before) == (ELIP if kept else None)
        assert config.leaves_pruning(backbone, before) == ((backbone, keep, method, pruning) == UNKEPT)


def test_retrieval_keeps_no_pruning_for_its_pictures_are_encoded_without_a_text() -> None:
    config = parse(TrimConfig, {**TRIM, "task": "retrieval"})
    before = PruningConfig(method="elip", elip=ELIP)
    assert config.kept_pruning("meter", before) is None and not config.leaves_pruning("meter", before)


def test_a_stage_that_does_not_fit_the_tower_is_refused() -> None:
    with pytest.raises(UserError, match="add up to 12"):
        ClassificationModel(small_model("meter", depth=6), None, Policy(), None, ElipConfig())
