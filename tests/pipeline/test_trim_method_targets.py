"""Targets of every kind with every method: refused before there are weights, planned, forced, settled or measured."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from pipeline.measure.latency import LatencyConfig, alone, latency_curve
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.stage import Stage
from pipeline.tasks.classification import ClassificationModel
from pipeline.trim import check_targets
from pipeline.trim_config import TrimConfig
from pipeline.trim_plan import Examples, check_before, plan_target
from pipeline.trim_settle import Settler
from pipeline.trimming.cost import solve_share, units_of
from pipeline.trimming.ftkd import Layers, choose_layers
from pipeline.trimming.methods import HeadBaselineConfig, MethodName, MethodsConfig, TokenBaselineConfig
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import TrimmerConfig, Trimmers
from pipeline.worker import parse
from tests.pipeline.small import MAX_TOKENS, scale, small_batch, small_model

UNPRUNED = PruningConfig(method="none")
TRIMMERS = TrimmerConfig(width_share=0.1, keep_bias=0.0, last_std=0.5)
QUICK = LatencyConfig(instances=2, rounds=6, seconds=0.01)
EXAMPLES = Examples(lambda count: small_batch(min(count, 32)), scale, 16, QUICK)
FIXED: tuple[MethodName, ...] = ("random", "trips", "evit", "tome")
RANKED: tuple[MethodName, ...] = ("head_random", "grad_layer", "grad_all")
LEARNING: tuple[MethodName, ...] = ("smarttrim", "local", *RANKED)


def model_of(method: MethodName, backbone: BackboneName = "albef", **more: Any) -> ClassificationModel:
    """As the stage plans for: with what trims, or for a student its teacher."""
    config = MethodsConfig(method=method, **more)
    torch.manual_seed(0)
    trims = None if method == "ftkd" else config.reduction or TRIMMERS
    return ClassificationModel(small_model(backbone, depth=6), trims, config.policy).eval()


def config_of(method: MethodName, *targets: float | str, **more: Any) -> TrimConfig:
    values = {"loop": {"samples": 8, "global_batch": 4}, "method": method, "targets": list(targets), **more}
    return parse(TrimConfig, values)


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
@pytest.mark.parametrize("method", [*LEARNING, *FIXED, "ftkd"])
def test_what_a_method_cannot_reach_is_refused_before_there_are_weights(
    method: MethodName, backbone: BackboneName
) -> None:
    bare = copy.deepcopy(small_model(backbone, depth=6)).to("meta")
    for words in ("500x", "1e-6 GFLOPs", "5 GFLOPs"):
        with pytest.raises(UserError, match=r"cannot be reached|no trimming"):
            check_targets(config_of(method, 1.0, words), bare, UNPRUNED, MAX_TOKENS)
    check_targets(config_of(method, 1.0, "1.1x"), bare, UNPRUNED, MAX_TOKENS)


@pytest.mark.parametrize("method", [*LEARNING, *FIXED, "ftkd"])
def test_the_highest_target_that_is_named_before_is_one(method: MethodName) -> None:
    model = model_of(method).to("meta")
    for words in ("500x", "1e-6 GFLOPs"):
        with pytest.raises(UserError) as refusal:
            check_before([Target.parse(words)], model, MAX_TOKENS)
        named = str(refusal.value).partition("the highest target is ")[2].partition(",")[0]
        check_before([Target.parse(named)], model, MAX_TOKENS)


@pytest.mark.parametrize("method", [*FIXED, "ftkd"])
def test_milliseconds_are_refused_where_no_score_can_settle_them(method: MethodName) -> None:
    with pytest.raises(UserError, match=f"9 ms .* trim.method={method} has none .* 2.0x"):
        config_of(method, 1.0, "9 ms")
    with pytest.raises(UserError, match=r"trim.method=grad_all has none"):
        config_of("grad_all", 1.0, "9 ms", heads={"tokens": "all"})


def test_milliseconds_are_allowed_wherever_trimmers_score() -> None:
    for method in LEARNING:
        assert config_of(method, 1.0, "9 ms").learns
    assert config_of("random", "9 ms", tokens={"heads": "trimmers"}).learns


@pytest.mark.parametrize("method", [*LEARNING, *FIXED, "ftkd"])
def test_speed_ups_and_accumulates_are_planned_alike(method: MethodName, tmp_path: Path) -> None:
    model, stage = model_of(method), Stage(tmp_path, Process())
    typical = units_of(model.backbone, small_batch(8).token_mask)
    full = float(model.full_macs(typical).mean()) / 1e9
    assert plan_target(Target(1.3, "x"), model, typical, EXAMPLES, stage).speed_up == 1.3
    plan = plan_target(Target(full / 1.3, "GMACs"), model, typical, EXAMPLES, stage)
    assert plan.speed_up == pytest.approx(1.3)


@pytest.mark.parametrize("unit", ["x", "GMACs"])
@pytest.mark.parametrize("method", [*LEARNING, *FIXED, "ftkd"])
def test_a_model_is_settled_or_measured_by_its_target(method: MethodName, unit: str, tmp_path: Path) -> None:
    model, batch = model_of(method), small_batch(64)
    units = units_of(model.backbone, batch.token_mask)
    full = float(model.full_macs(units).mean()) / 1e9
    target = Target(1.3, "x") if unit == "x" else Target(full / 1.3, "GMACs")
    plan = plan_target(target, model, units, EXAMPLES, Stage(tmp_path, Process()))
    if model.trimmers is None:
        whole = model.backbone.config
        layers = choose_layers(model.cost_model(), units, plan.speed_up)
        assert layers != Layers.of(whole)
        model = ClassificationModel(build_model(layers.cut(whole)), None, whole=whole).eval()
    else:
        model.trimmers.set_share(solve_share(model.cost_model(), units, plan.speed_up))
    settled = Settler(model, target, batch, EXAMPLES).settle(plan)
    shares = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    spent = float((shares * model.full_macs(units)).mean()) / 1e9
    assert settled.reached == pytest.approx(full / spent if unit == "x" else spent, rel=1e-4)
    # A student of six layers has few sizes to choose from.
    assert settled.reached == pytest.approx(target.amount, rel=0.1 if method == "ftkd" else 0.03)
    if method in (*FIXED, "ftkd"):
        assert settled.shift == 0


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("local", {}),
        ("local", {"tokens": TokenBaselineConfig(heads="trimmers")}),
        ("random", {"tokens": TokenBaselineConfig(heads="trimmers")}),
        ("grad_all", {"heads": HeadBaselineConfig(tokens="trimmers")}),
    ],
)
def test_what_is_fixed_beside_scores_keeps_the_forced_share_and_then_its_own(
    method: MethodName, more: dict[str, Any]
) -> None:
    model, batch = model_of(method, **more), small_batch(4)
    assert isinstance(model.trimmers, Trimmers)
    model.trimmers.set_share(0.7)
    before = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    curve = latency_curve(model, alone(batch, [0, 1], scale, torch.device("cpu")), QUICK)
    units, cost = units_of(model.backbone, batch.token_mask[:2]), model.cost_model()
    for share, found in ((0.0, curve.shares[0]), (1.0, curve.shares[-1])):
        assert found == pytest.approx(float(cost.at_share(units, share).sum() / cost.full(units).sum()), rel=1e-5)
    assert curve.shares == sorted(curve.shares)
    assert model.trimmers.share == 0.7
    after = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    assert torch.equal(before, after)


def test_a_time_out_of_reach_is_refused_in_the_methods_own_words(tmp_path: Path) -> None:
    model, stage = model_of("grad_all"), Stage(tmp_path, Process(), fingerprint="mine")
    typical = units_of(model.backbone, small_batch(8).token_mask)
    with pytest.raises(UserError, match=r"with all trimmed that this method trims .* ms on this machine"):
        plan_target(Target(1e-3, "ms"), model, typical, EXAMPLES, stage)


def test_what_only_the_exports_longer_texts_can_reach_is_not_refused() -> None:
    bare = copy.deepcopy(small_model("albef", depth=6)).to("meta")
    units = units_of(bare, torch.ones(1, MAX_TOKENS))
    near = f"{0.999 * float(ClassificationModel(bare, None).full_macs(units)) / 1e9:.6g} GFLOPs"
    check_targets(config_of("evit", 1.0, near, max_tokens=4), bare, UNPRUNED, MAX_TOKENS)
    with pytest.raises(UserError, match="asks for no trimming"):
        check_targets(config_of("evit", 1.0, near, max_tokens=4), bare, UNPRUNED, 4)
