"""DeepSpeed in two processes does what plain PyTorch does in one, and keeps quiet."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.engine import (
    Engine,
    EngineConfig,
    NonFiniteError,
    OptimizerConfig,
    ParamGroup,
    build_engine,
    split_decay,
)
from pipeline.engine_deepspeed import ensure_process_group
from pipeline.fragments import FragmentFiles
from pipeline.process import Process
from pipeline.tensor_files import write_tensors
from tests.pipeline.distributed import RankError, run_ranks

BATCH = 8
STEPS = 6
OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.1)


class Tiny(nn.Module):
    """A small network with everything that needs care: a frozen part, a buffer, a branch used now and then."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
        self.rare = nn.Linear(6, 3)
        self.frozen = nn.Linear(6, 3).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("seen", torch.zeros(1))
        for param in self.parameters():
            param.data = torch.randn(param.shape, generator=generator) * 0.3

    def forward(self, x: Tensor, target: Tensor, rare: bool) -> Tensor:
        out = self.body(x) * self.scale + self.frozen(x)
        if rare:
            out = out + self.rare(x)
        return (out - target).square().mean()


def tiny_groups(module: Tiny) -> list[ParamGroup]:
    scale = ParamGroup(params=(module.scale,), decay=False, lr_scale=0.1)
    return [scale, *split_decay(module.body), *split_decay(module.rare, lr_scale=0.5)]


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randn(BATCH, 6, generator=generator) * 3, torch.randn(BATCH, 3, generator=generator)


def train(process: Process, config: EngineConfig, steps: int = STEPS) -> tuple[list[float], dict[str, Tensor]]:
    """Per update: the loss averaged over ranks and micro-batches, then the gradient's norm; and the weights."""
    module = Tiny()
    engine = build_engine(config, OPTIMIZER, module, tiny_groups(module), process)
    numbers: list[float] = []
    parts = process.world_size * config.accumulation
    for step in range(steps):
        x, target = (t.chunk(parts) for t in batch(step))
        losses = []
        for micro in range(config.accumulation):
            mine = micro * process.world_size + process.rank
            loss = engine(x[mine], target[mine], rare=step % 2 == 1)
            report = engine.step(loss, lr_scale=1 - step / steps)
            losses.append(report.loss)
            assert report.updated == (micro == config.accumulation - 1)
        numbers += [sum(losses) / len(losses), report.grad_norm]
    weights = engine.weights()
    engine.close()
    return numbers, weights


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], dict[str, Tensor]]:
    return train(Process(), EngineConfig(name="torch"))


@pytest.mark.parametrize(("stage", "accumulation"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_two_ranks_equal_one_process(
    stage: int, accumulation: int, reference: tuple[list[float], dict[str, Tensor]]
) -> None:
    config = EngineConfig(zero_stage=stage, accumulation=accumulation)  # type: ignore[arg-type]
    for numbers, weights in run_ranks(train, 2, config):
        assert numbers == pytest.approx(reference[0], rel=1e-5, abs=1e-5)
        torch.testing.assert_close(weights, reference[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"zero_stage": 1, "offload_optimizer": True},
        {"zero_stage": 2, "offload_optimizer": True, "accumulation": 2},
        {"zero_stage": 3, "offload_optimizer": True},
        {"zero_stage": 3, "offload_params": True},
        {"zero_stage": 3, "offload_optimizer": True, "offload_params": True},
    ],
    ids=str,
)
def test_state_in_host_memory_changes_nothing(
    more: dict[str, Any], reference: tuple[list[float], dict[str, Tensor]]
) -> None:
    for numbers, weights in run_ranks(train, 2, EngineConfig(**more)):
        assert numbers == pytest.approx(reference[0], rel=1e-5, abs=1e-5)
        torch.testing.assert_close(weights, reference[1], rtol=1e-5, atol=1e-5)


def _updates_in_fp16(process: Process, config: EngineConfig) -> list[tuple[float, float, bool]]:
    module = Tiny()
    engine = build_engine(config, OPTIMIZER, module, tiny_groups(module), process)
    x, target = (t.chunk(process.world_size)[process.rank] for t in batch(0))
    reports = [engine.step(engine(x, target, rare=True), 1.0) for _ in range(20)]
    engine.close()
    return [(report.loss, report.grad_norm, report.updated) for report in reports]


@pytest.mark.parametrize(
    "more", [{"zero_stage": s} for s in range(4)] + [{"zero_stage": 2, "offload_optimizer": True}], ids=str
)
def test_fp16_finds_a_scale_with_all_ranks_and_clips_as_float32_does(more: dict[str, Any]) -> None:
    wanted = _updates_in_fp16(Process(), EngineConfig(name="torch"))
    first, second = run_ranks(_updates_in_fp16, 2, EngineConfig(precision="fp16", **more))
    assert first == second
    scaled = [updated for *_, updated in first].index(True)
    assert 0 < scaled < 12 and all(updated for *_, updated in first[scaled:])
    for found, expected in zip(first[scaled:], wanted, strict=False):
        assert found == pytest.approx(expected, rel=0.02)


def test_the_gradient_is_clipped_in_the_comparison(reference: tuple[list[float], dict[str, Tensor]]) -> None:
    norms = reference[0][1::2]
    assert max(norms) > EngineConfig().grad_clip, "the comparison above would not notice missing clipping"


def _both_precisions(process: Process) -> tuple[list[float], list[float]]:
    config = EngineConfig(zero_stage=1)
    return train(process, config)[0], train(process, dataclasses.replace(config, precision="bf16"))[0]


def test_bf16_rounds_the_forward_pass_and_keeps_float32_weights() -> None:
    plain, rounded = run_ranks(_both_precisions, 2)[0]
    assert rounded != plain
    assert rounded == pytest.approx(plain, rel=0.05)
    weights = train(Process(), EngineConfig(name="torch", precision="bf16"))[1]
    assert {t.dtype for t in weights.values()} == {torch.float32}


def _limited(process: Process, config: EngineConfig) -> list[Tensor]:
    """A weight that is driven out of its limits, which it begins outside of; its value after each update."""
    module = Tiny()
    weight = module.body[0].weight
    rest = tuple(p for p in module.parameters() if p is not weight and p.requires_grad)
    groups = [ParamGroup(params=(weight,), decay=False, limits=(-0.1, 0.1)), ParamGroup(params=rest, decay=False)]
    engine = build_engine(config, OPTIMIZER, module, groups, process)
    values = []
    for number in range(4):
        engine.step(engine(*batch(number), rare=True), 1.0)
        values.append(engine.weights()["body.0.weight"])
    engine.close()
    return values


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_limits_of_a_parameter_hold_and_are_what_the_next_step_begins_with(stage: int) -> None:
    wanted = _limited(Process(), EngineConfig(name="torch"))
    assert max(value.abs().max().item() for value in wanted) == pytest.approx(0.1)
    for values in run_ranks(_limited, 2, EngineConfig(zero_stage=stage)):  # type: ignore[arg-type]
        torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-5)


def _poison(process: Process, config: EngineConfig, where: str) -> tuple[str, bool]:
    """One good step, then NaN on rank 1 in the loss, or only in its gradient; what was raised, any weight moved?"""
    module = Tiny()
    engine = build_engine(config, OPTIMIZER, module, tiny_groups(module), process)
    engine.step(engine(*batch(0), rare=True), 1.0)
    before = engine.weights()
    loss = engine(*batch(1), rare=True)
    if process.rank == process.world_size - 1:
        finite_with_infinite_slope = (module.body[0].weight * 0).sum().abs().sqrt()
        loss = loss * float("nan") if where == "loss" else loss + finite_with_infinite_slope
    said = "nothing"
    try:
        engine.step(loss, 1.0)
    except NonFiniteError as error:
        said = str(error)
    after = engine.weights()
    engine.close()
    return said, any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_on_one_rank_stops_all_before_the_step(stage: int, where: str) -> None:
    config = EngineConfig(zero_stage=stage)  # type: ignore[arg-type]
    for said, moved in run_ranks(_poison, 2, config, where):
        assert where in said
        assert not moved


def _save_and_go_on(process: Process, config: EngineConfig, folder: Path) -> tuple[list[float], list[float]]:
    def steps(engine: Engine, numbers: range) -> list[float]:
        reports = [engine.step(engine(*batch(10 * n + process.rank), rare=True), 1.0) for n in numbers]
        return [value for report in reports for value in (report.loss, report.grad_norm)]

    module = Tiny()
    engine = build_engine(config, OPTIMIZER, module, tiny_groups(module), process)
    steps(engine, range(3))
    state = engine.state()
    write_tensors(folder / f"{process.rank}.safetensors", state.fragments)
    dist.barrier()
    undisturbed = steps(engine, range(3, 6))
    engine.close()
    module = Tiny()
    again = build_engine(config, OPTIMIZER, module, tiny_groups(module), process)
    again.load(FragmentFiles(sorted(folder.iterdir())), state.values)
    resumed = steps(again, range(3, 6))
    again.close()
    return undisturbed, resumed


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resumes_exactly(stage: int, tmp_path: Path) -> None:
    config = EngineConfig(zero_stage=stage)  # type: ignore[arg-type]
    for undisturbed, resumed in run_ranks(_save_and_go_on, 2, config, tmp_path):
        assert resumed == undisturbed


def _fail_on_rank_1(process: Process) -> None:
    if process.rank == 1:
        raise KeyError("only here")


def test_the_test_helper_carries_a_failure_back_and_recovers() -> None:
    with pytest.raises(RankError, match="only here") as caught:
        run_ranks(_fail_on_rank_1, 2)
    assert caught.value.causes == {1: "KeyError"}


def test_two_processes_that_cannot_find_each_other_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # The group that a test of one process may have made stays: DeepSpeed keeps groups of its own within it.
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RuntimeError, match="start several processes with Ray or torchrun"):
        ensure_process_group(Process(world_size=2))


def _claim_three(process: Process) -> None:
    ensure_process_group(dataclasses.replace(process, world_size=3))


def test_a_process_group_of_another_size_is_refused() -> None:
    with pytest.raises(RankError, match="the process group has 2 ranks, the job 3"):
        run_ranks(_claim_three, 2)


_ALONE = """
import sys
import torch
from pipeline.engine import EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.process import Process
module = torch.nn.Linear(2, 1)
engine = build_engine(EngineConfig(), OptimizerConfig(), module, split_decay(module), Process())
engine.step(engine(torch.ones(1, 2)).sum(), 1.0)
sys.stderr.write("stepped")
"""


def test_one_process_needs_no_launcher_no_port_no_compiler_and_prints_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {
        "PATH": str(empty),
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ALONE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == ("", "stepped")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"], "something was compiled or cached"
