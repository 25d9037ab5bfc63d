"""Engines in one plain process: configuration, parameter groups, the torch engine."""

import importlib.metadata
import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
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
from pipeline.process import Process


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
        ({"precision": "fp8"}, "give auto, fp32 or bf16"),
        ({"grad_clip": -1.0}, "0 turns clipping off"),
        ({"grad_clip": math.nan}, "grad_clip=nan"),
        ({"accumulation": 0}, "accumulation=0 must be at least 1"),
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
