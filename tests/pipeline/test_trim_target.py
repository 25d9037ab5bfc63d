"""Targets of three kinds: read, refused where out of reach, planned, settled, and what was reached of them."""

import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from pipeline.measure.latency import (
    Curve,
    Latency,
    LatencyConfig,
    alike,
    alone,
    latency_curve,
    packed_latency,
)
from pipeline.models.config import BackboneName
from pipeline.process import Process
from pipeline.stage import Stage
from pipeline.tasks.classification import ClassificationModel
from pipeline.trim_plan import Examples, Plan, check_before, plan_target
from pipeline.trim_settle import Settler, reached, settle_time
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target, check_target
from pipeline.trimming.trimmers import TrimmerConfig
from tests.pipeline.small import MAX_TOKENS, scale, small_batch, small_model

UNDECIDED = TrimmerConfig(width_share=0.1, keep_bias=0.0, last_std=0.5)
QUICK = LatencyConfig(instances=2, rounds=6, seconds=0.01)
EXAMPLES = Examples(lambda count: small_batch(min(count, 32)), scale, 16, QUICK)


def trimmed_model(backbone: BackboneName = "albef") -> ClassificationModel:
    return ClassificationModel(small_model(backbone), UNDECIDED).eval()


@pytest.mark.parametrize(
    ("written", "amount", "unit", "name", "said"),
    [
        (2.0, 2.0, "x", "2.0x", "2.0x"),
        (2, 2.0, "x", "2.0x", "2.0x"),
        ("2.0x", 2.0, "x", "2.0x", "2.0x"),
        (" 1.25 X", 1.25, "x", "1.25x", "1.25x"),
        ("12 GFLOPs", 12.0, "GMACs", "12GMACs", "12 GMACs"),
        ("12 GMACs", 12.0, "GMACs", "12GMACs", "12 GMACs"),
        ("0.0061gmacs", 0.0061, "GMACs", "0.0061GMACs", "0.0061 GMACs"),
        ("35ms", 35.0, "ms", "35ms", "35 ms"),
        ("3.5e1 ms", 35.0, "ms", "35ms", "35 ms"),
    ],
)
def test_targets_are_read_and_name_their_stage(
    written: float | str, amount: float, unit: str, name: str, said: str
) -> None:
    target = Target.parse(written)
    assert (target.amount, target.unit, target.name, str(target)) == (amount, unit, name, said)
    assert Target.parse(target.plain) == target


@pytest.mark.parametrize("written", ["0.5x", "0 ms", "nan", "-3 ms", "12 parsecs", "fast", "", "1..2x", "true", "ms"])
def test_what_is_no_target_is_refused_with_examples_of_each_kind(written: str) -> None:
    with pytest.raises(UserError, match=r"is no target; .*2\.0x.*GFLOPs.*ms"):
        Target.parse(written)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("4.5x", r"4\.5x cannot be reached: .* 10 of its 43\.05 GMACs; the highest target is 4\.30x"),
        ("9 GFLOPs", r"9 GMACs cannot be reached: .*; the highest target is 10 GMACs, which is 4\.30x"),
        ("9 ms", r"9 ms cannot be reached: .* 10 of its 43\.05 ms; the highest target is 10 ms, which is 4\.30x"),
        ("50 GFLOPs", r"50 GMACs asks for no trimming: the untrimmed model takes 43\.05 GMACs"),
        ("44 ms", r"44 ms asks for no trimming: .*1\.0x for the untrimmed"),
    ],
)
def test_a_target_out_of_reach_is_refused_with_the_highest_that_is_not(written: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_target(Target.parse(written), 10.0, 43.05)


@pytest.mark.parametrize(("least", "full"), [(10.0, 43.0), (0.123456, 0.987654), (7.0, 7.77)])
def test_the_highest_target_that_is_named_is_one(least: float, full: float) -> None:
    for unit in ("x", "GMACs", "ms"):
        with pytest.raises(UserError) as refusal:
            check_target(Target(1e9 if unit == "x" else 1e-9, unit), least, full)  # type: ignore[arg-type]
        named = str(refusal.value).partition("the highest target is ")[2].partition(",")[0]
        check_target(Target.parse(named), least, full)


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_what_no_text_can_reach_is_refused_before_there_are_weights(backbone: BackboneName) -> None:
    model = trimmed_model(backbone)
    bare = copy.deepcopy(model).to("meta")
    for words in ("500x", "1e-6 GFLOPs", "5 GFLOPs"):
        with pytest.raises(UserError, match=r"cannot be reached|no trimming"):
            check_before([Target.parse("1.2x"), Target.parse(words)], bare, MAX_TOKENS)
    # What it lets through may still be refused for the data's texts, never the other way round.
    units = units_of(model.backbone, small_batch(6).token_mask)
    cost = model.cost_model()
    highest = float((cost.full(units) / cost.at_share(units, 0.0)).max())
    check_before([Target(highest, "x"), Target.parse(1.0), Target.parse("1e-9 ms")], bare, MAX_TOKENS)


def test_speed_ups_and_accumulates_are_planned_alike(tmp_path: Path) -> None:
    model, stage = trimmed_model(), Stage(tmp_path, Process())
    typical = units_of(model.backbone, small_batch(8).token_mask)
    full = float(model.cost_model().full(typical).mean()) / 1e9
    assert plan_target(Target(1.5, "x"), model, typical, EXAMPLES, stage).speed_up == 1.5
    plan = plan_target(Target(full / 1.5, "GMACs"), model, typical, EXAMPLES, stage)
    assert plan.speed_up == pytest.approx(1.5)
    with pytest.raises(UserError, match=r"highest target is .* GMACs, which is \d"):
        plan_target(Target(full / 500, "GMACs"), model, typical, EXAMPLES, stage)


@pytest.mark.parametrize("unit", ["x", "GMACs"])
def test_a_model_is_settled_on_its_target_and_measured_by_it(unit: str) -> None:
    model, batch = trimmed_model(), small_batch(64)
    full = model.cost_model().full(units_of(model.backbone, batch.token_mask))
    target = Target(1.4, "x") if unit == "x" else Target(float(full.mean()) / 1.4e9, "GMACs")
    settled = Settler(model, target, batch, EXAMPLES).settle(Plan(1.4))
    shares = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    row = reached(target, (shares * full).tolist(), full.tolist(), lambda: pytest.fail("no time was asked for"))
    assert row["reached"] == pytest.approx(settled.reached) == pytest.approx(target.amount, rel=0.01)
    assert (row["wanted"], row["unit"]) == (target.amount, unit)


def test_the_timed_instances_cost_on_average_what_all_do() -> None:
    draw = random.Random(0)
    costs = [draw.lognormvariate(0, 0.5) for _ in range(5000)]
    among = [draw.lognormvariate(0, 0.5) for _ in range(256)]
    chosen = [among[row] for row in alike(costs, among, 16)]
    assert sum(chosen) / 16 == pytest.approx(sum(costs) / 5000, rel=0.02)


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_forced_shares_cost_from_everything_to_nothing_and_leave_the_model_as_it_was(backbone: BackboneName) -> None:
    model, batch = trimmed_model(backbone), small_batch(4)
    before = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    curve = latency_curve(model, alone(batch, [0, 1], scale, torch.device("cpu")), QUICK)
    units = units_of(model.backbone, batch.token_mask[:2])
    cost = model.cost_model()
    for share, found in ((0.0, curve.shares[0]), (1.0, curve.shares[-1])):
        assert found == pytest.approx(float(cost.at_share(units, share).sum() / cost.full(units).sum()), rel=1e-5)
    assert curve.shares == sorted(curve.shares) and curve.ms == sorted(curve.ms)
    after = model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask)
    assert torch.equal(before, after)


def test_a_time_is_told_with_its_uncertainty_and_the_untrimmed_models_beside_it() -> None:
    model = trimmed_model()
    latency = packed_latency(model, alone(small_batch(4), [0, 3], scale, torch.device("cpu")), QUICK)
    assert 0 < latency.low <= latency.ms <= latency.high and latency.full_ms > 0
    assert latency.rounds >= 6 and latency.threads == torch.get_num_threads()


def test_a_time_beside_other_work_is_that_of_the_same_machine_without_it() -> None:
    busy = Latency(60.0, 55.0, 70.0, 80.0, 0.75, 0.74, 0.77, 9, 16, 1, "cpu").where_full_takes(40.0)
    assert (busy.ms, busy.full_ms) == (30.0, 40.0)
    assert (busy.low, busy.high) == pytest.approx((29.6, 30.8))


def clock(noise: float, seed: int) -> "Clock":
    return Clock(random.Random(seed), noise)


class Clock:
    """A machine on which time is affine in cost, with noise."""

    def __init__(self, draw: random.Random, noise: float) -> None:
        self.draw, self.noise, self.share = draw, noise, 1.0

    def spend(self, share: float) -> float:
        self.share = share
        return share

    def true(self) -> float:
        return 8.0 + 40.0 * self.share

    def measure(self) -> Latency:
        ms, half = self.true() * (1 + self.noise * self.draw.uniform(-1, 1)), self.noise * self.true()
        return Latency(
            ms, ms - half, ms + half, 47.0, *(each / 47.0 for each in (ms, ms - half, ms + half)), 9, 16, 1, "cpu"
        )


@pytest.mark.parametrize("slope", [28.0, 40.0, 60.0])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_time_is_found_by_costs_though_the_clock_is_noisy_and_its_slope_misjudged(slope: float, noise: float) -> None:
    for seed in range(20):
        machine = clock(noise, seed)
        tried = settle_time(30.0, Plan(1.25, slope), machine.spend, machine.measure)
        spent, latency = min(tried, key=lambda each: abs(each[1].ms - 30.0))
        assert abs(latency.ms - 30.0) <= 0.03 * 30.0
        assert 8.0 + 40.0 * spent == pytest.approx(30.0, rel=0.02 + noise)


def test_a_time_that_cannot_be_found_ends_with_what_came_nearest() -> None:
    machine = clock(0.0, 0)
    tried = settle_time(5.0, Plan(2.0, 40.0), machine.spend, machine.measure)
    assert len(tried) == 5 and tried[-1][1].ms < tried[0][1].ms


def test_a_curve_is_read_both_ways() -> None:
    flat = Latency(40.0, 39.0, 41.0, 40.0, 1.0, 1.0, 1.0, 9, 2, 1, "cpu")
    curve = Curve([0.1, 0.5, 1.1], [10.0, 20.0, 44.0], flat, replace(flat, ms=10.0))
    assert curve.share_at(15.0) == pytest.approx(0.3)
    assert curve.slope == pytest.approx(34.0)


def test_a_measured_plan_stays_when_training_goes_on_but_not_for_another_stage(tmp_path: Path) -> None:
    model = trimmed_model()
    typical = units_of(model.backbone, small_batch(8).token_mask)
    plan = {"speed_up": 1.7, "slope": 3.0, "full_ms": 9.0}
    write_json(tmp_path / "target.json", {"fingerprint": "mine", "plan": plan})
    mine = Stage(tmp_path, Process(), fingerprint="mine")
    assert plan_target(Target(1e-3, "ms"), model, typical, EXAMPLES, mine) == Plan(**plan)
    with pytest.raises(
        UserError, match=r"cannot be reached: .* on this machine \(cpu, .*highest target is .* ms, which"
    ):
        plan_target(Target(1e-3, "ms"), model, typical, EXAMPLES, replace(mine, fingerprint="another"))
    assert read_json(tmp_path / "target.json")["fingerprint"] == "mine"
