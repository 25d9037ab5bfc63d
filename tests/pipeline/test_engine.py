"""Engines in one plain process: configuration, parameter groups, the torch engine."""

import importlib.metadata
import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.deepspeed_json import check_settings
from pipeline.engine import (
    Engine,
    EngineConfig,
    NonFiniteError,
    OptimizerConfig,
    ParamGroup,
    build_engine,
    preflight_deepspeed,
    split_decay,
)
from pipeline.engine_config import LrScalingConfig
from pipeline.engine_deepspeed import deepspeed_config
from pipeline.loss_scale import LossScale
from pipeline.process import Process
from pipeline.setup import describe_update


def make(lr: float = 0.1, **config: Any) -> Engine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    settings = EngineConfig(name="torch", **config)
    return build_engine(settings, OptimizerConfig(lr=lr), module, split_decay(module), Process())


def loss_of(engine: Engine, x: Tensor) -> Tensor:
    loss: Tensor = engine(x).square().mean()
    return loss


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "megatron"}, "give deepspeed or torch"),
        ({"zero_stage": 4}, "give 0, 1, 2 or 3"),
        ({"precision": "fp8"}, "give auto, fp32, bf16 or fp16"),
        ({"grad_clip": -1.0}, "0 turns clipping off"),
        ({"grad_clip": math.nan}, "grad_clip=nan"),
        ({"accumulation": 0}, "accumulation=0 must be at least 1"),
        ({"micro_batch": 0}, "micro_batch=0 must be at least 1"),
        ({"micro_batch": 4, "accumulation": 2}, "give one of them"),
        ({"zero_stage": 0, "offload_optimizer": True}, "give 1, 2 or 3"),
        ({"zero_stage": 2, "offload_params": True}, "keeps all weights; give 3"),
        ({"name": "torch", "offload_optimizer": True}, "use --engine.name deepspeed"),
        ({"name": "torch", "deepspeed_json": {"zero_optimization": {}}}, "use --engine.name deepspeed"),
        ({"zero_stage": 3, "compile": True}, "gathers weights layer by layer; give 2"),
        ({"deepspeed_json": {"optimizer": {"type": "Lamb"}}}, "sets optimizer, which is the stage's optimizer"),
        ({"deepspeed_json": {"train_batch_size": 4}}, "sets train_batch_size, which is the stage's loop.global_batch"),
        (
            {"deepspeed_json": {"zero_optimization": {"stage": 2}}},
            "zero_optimization.stage, which is engine.zero_stage",
        ),
        ({"deepspeed_json": {"zero_optimization": {"zero_hpz_partition_size": 2}}}, "checkpoints do not know that"),
        ({"deepspeed_json": {"zero_optimization": False}}, "zero_optimization to False, an object is wanted"),
        ({"deepspeed_json": {"zero_optimization": {"legacy_stage1": True}}}, "which DeepSpeed no longer has"),
        ({"deepspeed_json": {"zero_optimization": {"allgather_bucket_size": 5}}}, "must be even; give 6"),
        ({"deepspeed_json": {"zero_optimization": {"zenflow": {}}}}, "zenflow, which updates some weights later"),
        ({"deepspeed_json": {"bfloat16": {"enabled": True}}}, "sets bfloat16, which is engine.precision"),
        ({"deepspeed_json": {"prescale_gradients": True}, "zero_stage": 2}, "does not go with engine.zero_stage=2"),
        ({"deepspeed_json": {"gradient_predivide_factor": 2}, "zero_stage": 3}, "give 0 or 1, or set zero_optim"),
        ({"deepspeed_json": "/no/such.json"}, "such.json cannot be read: No such file"),
        ({"deepspeed_json": "{no"}, "does not hold valid JSON"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        EngineConfig(**given)


@pytest.mark.parametrize(
    "given", [{"lr": 0.0}, {"lr": math.inf}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}]
)
def test_an_optimizer_that_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(given))):
        OptimizerConfig(**given)


@pytest.mark.parametrize(
    ("rule", "batch", "factor"), [("none", 4096, 1), ("linear", 4096, 16), ("sqrt", 4096, 4), ("sqrt", 64, 0.5)]
)
def test_the_learning_rate_follows_the_batch_by_its_rule(rule: Any, batch: int, factor: float) -> None:
    scaling = LrScalingConfig(rule=rule, base_batch=None if rule == "none" else 256)
    scaled = OptimizerConfig(lr=1e-3, betas=(0.9, 0.98), lr_scaling=scaling).scaled(batch)
    assert scaled.lr == pytest.approx(1e-3 * factor)
    assert replace(scaled, lr=1e-3) == OptimizerConfig(lr=1e-3, betas=(0.9, 0.98))
    assert scaled.scaled(batch) == scaled, "it is scaled once"


def test_a_scaled_learning_rate_is_said_and_a_plain_one_is_not() -> None:
    config = OptimizerConfig(lr=1e-3, lr_scaling=LrScalingConfig(rule="sqrt", base_batch=256))
    assert config.describe_lr(1024) == "learning rate 0.001 x sqrt(1024/256) = 0.002"
    assert OptimizerConfig().describe_lr(1024) == ""
    assert describe_update(8, 2, 1, ["", config.describe_lr(8)]).startswith("an update: 8 samples = 2 workers x 4; lea")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rule": "cube", "base_batch": 8}, "give none, linear or sqrt"),
        ({"rule": "sqrt"}, "needs base_batch.*given: None"),
        ({"rule": "linear", "base_batch": 0}, "at least 1 .given: 0"),
        ({"base_batch": 256}, "base_batch=256 is not followed by rule=none"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LrScalingConfig(**given)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2).requires_grad_(False))
    decayed, plain = split_decay(module, lr_scale=3.0)
    assert [p.shape for p in decayed.params] == [(2, 2)]
    assert [p.shape for p in plain.params] == [(2,), (2,), (2,)]
    assert (decayed.decay, plain.decay, decayed.lr_scale, plain.lr_scale) == (True, False, 3.0, 3.0)


def test_tied_weights_are_one_parameter() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    assert [len(group.params) for group in split_decay(module)] == [1]


def test_a_parameter_in_two_groups_or_of_another_module_is_refused() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for groups in (split_decay(module) * 2, split_decay(other), []):
        with pytest.raises(ValueError, match=r"one group only|nothing to train"):
            build_engine(EngineConfig(name="torch"), OptimizerConfig(), module, groups, Process())


def test_torch_with_two_processes_is_refused() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"one process, not 2; use --engine\.name deepspeed"):
        build_engine(EngineConfig(name="torch"), OptimizerConfig(), module, split_decay(module), Process(world_size=2))


def test_steps_as_plain_adamw_with_clipping_does() -> None:
    engine = make(grad_clip=0.5)
    plain = make().module
    wanted = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in plain.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    for number in range(4):
        x = torch.randn(8, 3) * 5
        report = engine.step(loss_of(engine, x), lr_scale=1 / (1 + number))
        loss = plain(x).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in wanted.param_groups:
            group["lr"] = 0.1 / (1 + number)
        wanted.step()
        wanted.zero_grad()
        assert (report.loss, report.grad_norm) == pytest.approx((loss.item(), norm.item()), rel=1e-5)
        assert report.updated and report.lr == pytest.approx(0.1 / (1 + number))
    torch.testing.assert_close(engine.weights(), plain.state_dict(), rtol=1e-5, atol=1e-6)


def test_each_group_has_its_share_of_the_learning_rate() -> None:
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    groups = [*split_decay(module[0]), ParamGroup(params=(module[1].weight,), decay=False, lr_scale=10.0)]
    optimizer = OptimizerConfig(lr=0.01, weight_decay=0.0)
    engine = build_engine(EngineConfig(name="torch"), optimizer, module, groups, Process())
    before = engine.weights()
    engine.step(engine(torch.ones(1, 1)).sum(), lr_scale=0.5)
    moved = {name: (tensor - before[name]).abs().item() for name, tensor in engine.weights().items()}
    # Adam's first step is the learning rate, whatever the gradient.
    assert moved == pytest.approx({"0.weight": 0.005, "1.weight": 0.05}, rel=1e-3)


def test_accumulated_parts_equal_the_whole_batch() -> None:
    whole, parts = make(), make(accumulation=4)
    for _ in range(3):
        x = torch.randn(8, 3)
        report = whole.step(loss_of(whole, x), 1.0)
        reports = [parts.step(loss_of(parts, part), 1.0) for part in x.chunk(4)]
        assert [r.updated for r in reports] == [False, False, False, True]
        assert reports[-1].grad_norm == pytest.approx(report.grad_norm, rel=1e-5)
    torch.testing.assert_close(parts.weights(), whole.weights(), rtol=1e-5, atol=1e-6)


def test_saving_between_accumulated_parts_is_refused() -> None:
    engine = make(accumulation=2)
    engine.step(loss_of(engine, torch.ones(2, 3)), 1.0)
    with pytest.raises(RuntimeError, match="save between updates"):
        engine.state()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_or_gradient_stops_before_the_step(bad: float) -> None:
    engine = make()
    before = engine.weights()
    with pytest.raises(NonFiniteError, match="the loss is"):
        engine.step(loss_of(engine, torch.ones(2, 3)) * bad, 1.0)
    engine = make()
    weight = next(engine.module.parameters())
    weight.register_hook(lambda grad: grad * bad)
    with pytest.raises(NonFiniteError, match="norm of the gradient"):
        engine.step(loss_of(engine, torch.ones(2, 3)), 1.0)
    torch.testing.assert_close(engine.weights(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("batch", "processes", "micro_batch", "parts"),
    [
        (512, 4, None, 1),
        (512, 4, 128, 1),
        (512, 4, 200, 1),
        (512, 4, 127, 2),
        (512, 4, 50, 4),
        (12, 1, 5, 3),
        (14, 2, 4, 7),
    ],
)
def test_parts_of_an_update_are_as_few_as_fit(batch: int, processes: int, micro_batch: int | None, parts: int) -> None:
    settled = EngineConfig(micro_batch=micro_batch).resolved("pretrain", batch, processes)
    assert (settled.accumulation, settled.micro_batch) == (parts, None)


def test_samples_that_make_no_equal_parts_are_refused_with_a_size_that_does() -> None:
    with pytest.raises(UserError, match=r"7 samples of each of 2 workers.*equal parts of 2 to 4 .*micro_batch 7"):
        EngineConfig(micro_batch=4).resolved("pretrain", 14, 2, least=2)


def test_settings_of_deepspeeds_are_read_from_a_file_and_laid_over_ours(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"reduce_bucket_size": 5}, "wall_clock_breakdown": true}')
    config = EngineConfig(deepspeed_json=str(file), zero_stage=2, grad_clip=3.0)
    assert config.deepspeed_json == {"zero_optimization": {"reduce_bucket_size": 5}, "wall_clock_breakdown": True}
    written = deepspeed_config(config, Process())
    assert written["zero_optimization"]["stage"] == 2 and written["zero_optimization"]["reduce_bucket_size"] == 5
    assert written["zero_optimization"]["allgather_bucket_size"] == 50_000_000
    assert (written["gradient_clipping"], written["wall_clock_breakdown"]) == (3.0, True)
    assert EngineConfig(deepspeed_json='{"prescale_gradients": true}').deepspeed_json == {"prescale_gradients": True}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"wall_clock_brakedown": True}, "did you mean wall_clock_breakdown"),
        ({"zero_optimization": {"reduce_bucket_sise": 5}}, "reduce_bucket_sise"),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, "reduce_bucket_size"),
        ({"progressive_layer_drop": {"enabled": True}}, "progressive_layer_drop"),
        ({"zero_optimization": {"zeropp_loco_param": {"err_beta": 0.8}}}, "LoCo-Zero.* has been removed"),
        ({"communication_data_type": "bits"}, "communication_data_type"),
    ],
)
def test_settings_that_deepspeed_does_not_know_are_refused(settings: dict[str, Any], said: str) -> None:
    check_settings({"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 5}})
    with pytest.raises(UserError, match=said) as caught:
        check_settings(settings)
    assert "\n" not in str(caught.value)


def test_the_scale_of_the_loss_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale(dynamic=True, scale=8.0, patience=3)
    assert [scale.update(overflow) for overflow in (True, False, False, False)] == [True, False, False, False]
    assert scale.scale == 8.0
    again = LossScale(dynamic=True)
    again.load(scale.state())
    assert [again.update(True) for _ in range(4)] == [True, True, True, False]  # below 1 it is no overflow
    assert LossScale(dynamic=False).update(True) is False


def test_fp16_finds_a_scale_and_learns_as_float32_does() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    plain, half = make(lr=0.01), make(lr=0.01, precision="fp16")
    reports = [half.step(loss_of(half, x) * 100, 1.0) for _ in range(12)]
    skipped = [report.updated for report in reports].index(True)
    assert 0 < skipped < 8, "2**16 times this gradient is more than 16 bits hold"
    assert all(report.updated for report in reports[skipped:])
    losses = [plain.step(loss_of(plain, x) * 100, 1.0).loss for _ in range(12 - skipped)]
    assert [report.loss for report in reports[skipped:]] == pytest.approx(losses, rel=0.01)
    assert {tensor.dtype for tensor in half.weights().values()} == {torch.float32}
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        half.step(loss_of(half, x) * math.nan, 1.0)


def test_after_a_bad_update_the_next_one_is_as_if_it_had_not_been() -> None:
    engine, other = make(accumulation=2), make(accumulation=2)
    x = torch.ones(2, 3)
    engine.step(loss_of(engine, x) * math.nan, 1.0)
    with pytest.raises(NonFiniteError):
        engine.step(loss_of(engine, x), 1.0)
    for one in (engine, other):
        assert [one.step(loss_of(one, x), 1.0).updated for _ in range(2)] == [False, True]
    torch.testing.assert_close(engine.weights(), other.weights(), rtol=0, atol=0)


def test_weights_are_a_copy() -> None:
    engine = make()
    copy = engine.weights()
    engine.step(loss_of(engine, torch.ones(2, 3)), 1.0)
    assert not torch.equal(copy["0.weight"], engine.weights()["0.weight"])


def test_a_missing_or_old_deepspeed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight_deepspeed()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.10")
    with pytest.raises(UserError, match=r"deepspeed 0\.9\.10 is installed.*--engine\.name torch"):
        preflight_deepspeed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; install it with .*--engine\.name torch") as caught:
        preflight_deepspeed()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "processes", "stage"),
    [
        ({"zero_stage": 1}, 1, 0),
        ({"zero_stage": 2}, 1, 0),
        ({"zero_stage": 3}, 1, 3),  # which may not hold all weights at once
        ({"zero_stage": 2}, 2, 2),
        ({"zero_stage": 1, "offload_optimizer": True}, 1, 1),
        ({"zero_stage": 2, "deepspeed_json": {"zero_optimization": {"round_robin_gradients": True}}}, 1, 2),
        ({"zero_stage": 1, "name": "torch"}, 1, 1),
    ],
)
def test_one_rank_splits_nothing(given: dict[str, Any], processes: int, stage: int) -> None:
    assert EngineConfig(**given).on(processes).zero_stage == stage
