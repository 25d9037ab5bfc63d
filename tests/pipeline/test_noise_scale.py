"""The gradient noise scale: against a known covariance, from every engine, through restarts, and what it costs."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.engine import Engine, EngineConfig, OptimizerConfig, build_engine, split_decay
from pipeline.loop_config import LoopConfig
from pipeline.measure.noise_scale import Estimate, NoiseScale, NoiseScaleConfig
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.stage import Stage
from pipeline.step_log import StepLog
from pipeline.tasks.task import EachPartAlone, Losses
from pipeline.train import train
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import small_batch

WIDTH, BATCH, PARTS, UPDATES = 16, 32, 4, 600
STILL = OptimizerConfig(lr=1e-12, weight_decay=0.0)


class Centre(nn.Module):
    """Half the squared distance to samples: a sample's gradient is its difference, so its covariance is theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(WIDTH - 4))

    def forward(self, samples_BD: Tensor) -> Tensor:
        here = torch.cat([self.first, self.rest])
        return (here - samples_BD).square().sum(1).mean() / 2


SPREAD = torch.linspace(0.5, 3.0, WIDTH)
MEAN = torch.full((WIDTH,), 0.5)
KNOWN = float(SPREAD.square().sum() / MEAN.square().sum())
"""tr(Sigma) / |G|^2."""


def centre_engine(config: EngineConfig, process: Process) -> Engine:
    module = Centre()
    return build_engine(config, STILL, module, split_decay(module), process)


def measured(process: Process, config: EngineConfig, updates: int) -> dict[str, float]:
    """The noise scale of a problem whose gradient stands still."""
    engine = centre_engine(config, process)
    noise = NoiseScale(NoiseScaleConfig(every=1, smoothing=0.998), BATCH, process.world_size * config.accumulation)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        samples = MEAN + SPREAD * torch.randn(BATCH, WIDTH, generator=generator)
        engine.watch_parts()
        for part in samples.chunk(process.world_size)[process.rank].chunk(config.accumulation):
            report = engine.step(engine(part), 1.0)
        assert report.part_square is not None
        noise.add(report.part_square, report.grad_norm**2)
    engine.close()
    return noise.values()


def test_it_is_that_of_a_known_covariance() -> None:
    values = measured(Process(), EngineConfig(name="torch", accumulation=PARTS), UPDATES)
    print(f"known {KNOWN:.2f}, found {values['noise_scale']:.2f}, critical batch {values['critical_batch']:.2f}")
    assert values["noise_scale"] == pytest.approx(KNOWN, rel=0.1)
    assert values["gradient/noise"] == pytest.approx(float(SPREAD.square().sum()), rel=0.1)
    assert values["gradient/signal"] == pytest.approx(float(MEAN.square().sum()), rel=0.1)
    # A ratio of single updates' terms would be wide of it, and so would the square of the whole batch's gradient.
    whole = float(MEAN.square().sum()) + float(SPREAD.square().sum()) / BATCH
    assert float(SPREAD.square().sum()) / whole < 0.7 * KNOWN


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_parts_on_two_ranks_are_seen_before_deepspeed_averages_them(stage: int) -> None:
    """The same parts have the same norms, whoever has them; fp16's scale is taken off."""
    more = {"precision": "fp16"} if stage == 1 else {}
    wanted = measured(Process(), EngineConfig(name="torch", accumulation=PARTS, grad_clip=0.1), 4)
    config = EngineConfig(zero_stage=stage, accumulation=PARTS // 2, grad_clip=0.1, **more)  # type: ignore[arg-type]
    for found in run_ranks(measured, 2, config, 4, timeout=120):
        assert found == pytest.approx(wanted, rel=1e-4)


def test_both_terms_are_without_bias() -> None:
    signal, noise = 2.0, 300.0
    found = Estimate.of(signal + noise / 8, signal + noise / 64, part=8, whole=64)
    assert (found.signal, found.noise) == pytest.approx((signal, noise))


def test_a_constant_noise_scale_is_the_critical_batch_and_a_buried_signal_is_not_told() -> None:
    noise = NoiseScale(NoiseScaleConfig(smoothing=0.9), 64, 8)
    assert noise.values() == {}
    noise.add(1.0, 2.0)
    assert set(noise.values()) == {"gradient/signal", "gradient/noise"}
    noise = NoiseScale(NoiseScaleConfig(smoothing=0.9), 64, 8)
    for _ in range(3):
        noise.add(2.0 + 300 / 8, 2.0 + 300 / 64)
    values = noise.values()
    assert values["gradient/signal"] == pytest.approx(2.0), "the smoothed term does not begin at 0"
    assert (values["noise_scale"], values["critical_batch"]) == pytest.approx((150.0, 150.0))


def test_the_state_goes_through_json_exactly() -> None:
    one, other = (NoiseScale(NoiseScaleConfig(smoothing=0.9), 64, 8) for _ in range(2))
    one.add(40.1, 6.3)
    other.load(json.loads(json.dumps(one.state())))
    for noise in (one, other):
        noise.add(39.7, 6.1)
    assert one.values() == other.values() and one.state() == other.state()


@pytest.mark.parametrize("given", [{"every": -1}, {"smoothing": 1.0}, {"smoothing": math.nan}])
def test_what_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"loop\.noise_scale\.{next(iter(given))}="):
        NoiseScaleConfig(**given)


class Pixels(EachPartAlone):
    """Learns the mean colour of pictures."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Linear(3, 3)

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        colours = batch.pixels.float().mean((2, 3)) / 255
        total = (forward(colours) - colours.flip(1)).square().mean()
        return Losses(total, {"colour": total})

    def before_update(self, progress: float) -> None: ...

    def after_update(self, progress: float) -> None: ...

    def drop_update(self) -> None: ...

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None: ...


def run(folder: Path, accumulation: int, every: int, saves: bool = False) -> list[dict[str, Any]]:
    task, process = Pixels(), Process()
    config = EngineConfig(name="torch", accumulation=accumulation)
    engine = build_engine(config, OptimizerConfig(), task.module, split_decay(task.module), process)
    loop = LoopConfig(
        samples=80, global_batch=8, log_every=1, noise_scale=NoiseScaleConfig(every=every, smoothing=0.5),
        checkpoint_seconds=0.0 if saves else 60.0,
    )  # fmt: skip

    def batches(start: int, end: int) -> Iterator[ImageTextBatch]:
        return (replace(small_batch(8, seed), skipped=[]) for seed in range(start, end))

    train(task, engine, batches, loop, Stage(folder, process))
    return read_metrics(folder / "metrics.jsonl")


TOLD = ("gradient/signal", "gradient/noise", "noise_scale", "critical_batch")


def test_it_is_logged_where_there_are_parts_and_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", 4, 2)
    assert "noise_scale" in whole[-1]
    assert whole[2]["gradient/noise"] == whole[3]["gradient/noise"] != whole[4]["gradient/noise"]
    assert not any(name in line for line in run(tmp_path / "off", 4, 0) for name in TOLD)
    assert not any(name in line for line in run(tmp_path / "one part", 1, 2) for name in TOLD)
    add = StepLog.add

    def add_and_stop(self: StepLog, step: int, *values: Any) -> None:
        add(self, step, *values)
        if step == 5:
            monkeypatch.setattr(StepLog, "add", add)
            raise KeyboardInterrupt

    monkeypatch.setattr(StepLog, "add", add_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 4, 2, saves=True)
    resumed = run(tmp_path / "stopped", 4, 2)
    assert len(resumed) == len(whole)
    for line, wanted in zip(resumed, whole, strict=True):
        assert {name: line.get(name) for name in TOLD} == {name: wanted.get(name) for name in TOLD}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_costs_less_than_a_fiftieth_of_a_step() -> None:
    """Of the CPU's time, in turns, a small ALBEF's update in two parts; measured every 10 updates as by default."""
    from tests.pipeline.zero import SmallRun, engine_config

    run, spent = SmallRun(Process(), engine_config(None, accumulation=2)), {True: 0.0, False: 0.0}
    for number in range(60):
        watch = number % 2 == 0
        begin = time.process_time()
        if watch:
            run.engine.watch_parts()
        run.step()
        spent[watch] += time.process_time() - begin if number >= 10 else 0.0
    cost = (spent[True] / spent[False] - 1) / NoiseScaleConfig().every
    print(f"a watched update costs {spent[True] / spent[False]:.3f} of another one: {cost:.2%} of all")
    assert cost < 0.02
