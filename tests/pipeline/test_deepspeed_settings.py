"""DeepSpeed's own settings, passed through: those that are let through change how an update is computed, not which."""

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.deepspeed_json import check_settings
from pipeline.engine import EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks

STEPS, PARTS = 3, 2
HARMLESS: list[dict[str, Any]] = [
    {},
    {"zero_optimization": {"reduce_bucket_size": 8, "allgather_bucket_size": 8}},
    {"zero_optimization": {"round_robin_gradients": True, "overlap_comm": True, "contiguous_gradients": True}},
    {"zero_optimization": {"sub_group_size": 10, "stage3_param_persistence_threshold": 0}},
    {"zero_optimization": {"stage3_max_live_parameters": 1, "stage3_prefetch_bucket_size": 0}},
    {"prescale_gradients": True, "gradient_predivide_factor": 2.0, "zero_optimization": {"reduce_scatter": False}},
    {"wall_clock_breakdown": True, "comms_logger": {"enabled": False}, "dump_state": False},
]


def trained(process: Process, stage: int, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights and moments after some updates of two parts each."""
    check_settings(settings)
    config = EngineConfig(
        zero_stage=stage,  # type: ignore[arg-type]
        deepspeed_json=settings,
        accumulation=PARTS,
        grad_clip=0.5,
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    engine = build_engine(config, OptimizerConfig(lr=0.1), module, split_decay(module), process)
    draw = torch.Generator().manual_seed(process.rank)
    for _ in range(STEPS * PARTS):
        engine.step(10 * engine(torch.randn(8, 4, generator=draw)).square().mean(), 1.0)
    assert engine.state().values["steps"] == STEPS
    weights = engine.weights()
    engine.close()
    return weights


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_settings_that_are_let_through_change_no_update(stage: int) -> None:
    plain, *others = [run_ranks(trained, 2, stage, settings, timeout=100)[0] for settings in HARMLESS]
    assert any(float(tensor.abs().max()) > 0 for tensor in plain.values())
    for settings, weights in zip(HARMLESS[1:], others, strict=True):
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, plain[name], atol=1e-6, rtol=1e-5, msg=f"{settings}: {name}")


@pytest.mark.timeout(240)
def test_a_setting_arrives_where_deepspeed_reads_it() -> None:
    """Sending gradients in 16 bits shows in the weights."""
    plain, rounded = (
        run_ranks(trained, 2, 2, settings, timeout=100)[0] for settings in ({}, {"communication_data_type": "bf16"})
    )
    differences = [float((plain[name] - rounded[name]).abs().max()) for name in plain]
    assert 0 < max(differences) < 0.05
