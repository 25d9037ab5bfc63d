"""Runs a bench: every variant in turn, compared with the unpruned one right before and after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from data_prep.errors import UserError
from pipeline.measure.bench_cases import REFERENCE, Bench, BenchConfig, Case, build_bench, variants_of
from pipeline.measure.peak import peak_flops
from pipeline.measure.saved_bytes import saved_bytes
from pipeline.measure.timing import Lap, bracket, median_interval, paired_ratios, spread, timed_lap
from pipeline.measure.training_macs import Macs

FLOPS_RULE = (
    "matrix products by arithmetic, a backward as two forwards; guidance and the momentum tower have no backward"
)


@dataclass(frozen=True)
class Memory:
    """Bytes of one run.

    Attributes:
        saved: Kept for backward.
        peak: The most that was allocated: on a GPU by all of a step, weights included. On a CPU nobody counts
            allocations; there the bytes kept for backward stand for it.
    """

    saved: int
    peak: int


def run_bench(config: BenchConfig, tick: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Builds the variants, times them, and compares.

    Args:
        config: What and how; `torch.set_num_threads` is called with its threads.
        tick: Called after each run of a variant, `runs_of` times in all.

    Returns:
        The object that `trimline bench ... --json` prints, without what the launcher knows of the machine.

    Raises:
        UserError: Sizes that cannot be pruned so.
    """
    torch.set_num_threads(config.threads)
    bench, device = build_bench(config), torch.device(config.device)
    runs = {name: partial(_run, bench, case, device) for name, case in bench.cases.items()}
    memory = {}
    try:
        laps, beside = bracket(runs, REFERENCE, rounds=config.rounds, warmup=config.warmup, seed=config.seed, tick=tick)
        for name, case in bench.cases.items():
            memory[name] = _memory(bench, case, device)
            tick(name)
    except torch.OutOfMemoryError as error:
        raise UserError(f"bench.batch={config.batch} does not fit into the GPU's memory; give a smaller one") from error
    name_of_gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    limit = peak_flops(name_of_gpu or "", config.dtype)
    return {
        "reference": REFERENCE,
        "device": config.device,
        "device_name": name_of_gpu,
        "rows": [
            timing_row(name, laps[name], beside[name])
            | promised(case.macs, bench.cases[REFERENCE].macs)
            | memory_row(memory[name], memory[REFERENCE])
            | {"mfu": utilisation(case.macs, config.batch, spread([lap.total for lap in laps[name]]).median, limit)}
            for name, case in bench.cases.items()
        ],
        **_stated(config),
        "includes": bench.includes,
        "flops_rule": FLOPS_RULE,
        "torch": torch.__version__,
    }


def runs_of(config: BenchConfig) -> int:
    """How often a bench calls `tick`: for each run of a round (`bracket`), and once a variant for its memory."""
    variants = len(variants_of(config))
    return (2 * variants - 1) * (config.warmup + config.rounds) + variants


def timing_row(name: str, laps: Sequence[Lap], reference: Sequence[Lap]) -> dict[str, Any]:
    """A variant's median seconds, and the median and spread of its ratios to the reference beside it."""
    by_round = paired_ratios([lap.total for lap in reference], [lap.total for lap in laps])
    ratios, interval = spread(by_round), median_interval(by_round) or (None, None)
    forward = paired_ratios([lap.forward for lap in reference], [lap.forward for lap in laps])
    backward = paired_ratios([lap.backward for lap in reference], [lap.backward for lap in laps])
    return {
        "name": name,
        "value": spread([lap.total for lap in laps]).median,
        "unit": "s",
        "ratio": ratios.median,
        "ratio_low": interval[0],
        "ratio_high": interval[1],
        "ratio_min": ratios.least,
        "ratio_q1": ratios.low,
        "ratio_q3": ratios.high,
        "forward_seconds": spread([lap.forward for lap in laps]).median,
        "backward_seconds": spread([lap.backward for lap in laps]).median,
        "forward_ratio": spread(forward).median,
        "backward_ratio": spread(backward).median,
    }


def promised(macs: Macs, reference: Macs) -> dict[str, float]:
    """The ratio that the FLOPs promise, and a sample's multiply-accumulates of forward and backward."""
    return {"flops_ratio": reference.step / macs.step, "gmacs": macs.step / 1e9}


def memory_row(memory: Memory, reference: Memory) -> dict[str, float]:
    """A variant's bytes, and what share of the reference's it keeps for backward."""
    return {
        "peak_bytes": memory.peak,
        "saved_bytes": memory.saved,
        "saved_share": memory.saved / reference.saved,
    }


def utilisation(macs: Macs, batch: int, seconds: float, limit: float | None) -> float | None:
    """Model FLOPs utilisation: what a step's own FLOPs took of the device's peak; None where that is not known."""
    return None if limit is None else 2 * macs.step * batch / seconds / limit


def _stated(config: BenchConfig) -> Mapping[str, Any]:
    """The settings that a result must be read with."""
    values = asdict(config)
    if config.what == "vision":
        values["text_length"] = None
    return {name: value for name, value in values.items() if name != "device"}


def _run(bench: Bench, case: Case, device: torch.device) -> Lap:
    lap = timed_lap(case.forward, case.gradient, device)
    bench.module.zero_grad(set_to_none=True)
    bench.after()
    return lap


def _memory(bench: Bench, case: Case, device: torch.device) -> Memory:
    kept = saved_bytes(case.forward, bench.standing())
    bench.after()
    if device.type != "cuda":
        return Memory(kept, kept)
    torch.cuda.reset_peak_memory_stats()
    _run(bench, case, device)
    return Memory(kept, torch.cuda.max_memory_allocated())
