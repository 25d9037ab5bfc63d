"""`trimline bench`: measurements of this machine, each a ratio to a reference of the same run."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from launch import machine
from launch.answers import Answer
from launch.bench_progress import counted
from launch.report.table import aligned
from launch.report.words import ABSENT
from pipeline.measure.bench import run_bench, runs_of
from pipeline.measure.bench_cases import BenchConfig

_GPU_BATCH = {"vision": 128, "step": 64}
_CPU_BATCH = 8


def bench_command(what: str, options: argparse.Namespace) -> Answer:
    """`trimline bench vision`, `step`, `trim`, `shard`, `loader` and `launch`.

    Raises:
        UserError: Options that nothing can be measured with.
    """
    if what == "shard":
        from launch.bench_shard import shard_bench_command

        return shard_bench_command(options)
    if what == "loader":
        from launch.bench_loader import loader_bench_command

        return loader_bench_command(options)
    if what == "trim":
        from launch.bench_trim import trim_bench_command

        return trim_bench_command(options)
    if what == "launch":
        from launch.bench_launch import launch_bench_command

        return launch_bench_command(options)
    config = _config(what, options)
    total = runs_of(config)
    with counted(what, total) as tick:
        result = run_bench(config, tick)
    if result["device_name"] is None:
        result["device_name"] = machine.hardware()["processor"]
    result["commit"] = machine.git_commit()
    return 0, result, bench_text(result)


def _config(what: str, options: argparse.Namespace) -> BenchConfig:
    """What was not asked for is chosen by bench and device: a GPU computes as it trains."""
    on_gpu = torch.cuda.is_available() if options.device is None else options.device == "cuda"

    def given(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    return BenchConfig(
        what="vision" if what == "vision" else "step",
        model=options.model,
        variants=tuple(options.variants),
        image_size=options.image_size,
        patch=options.patch,
        text_length=options.text_length if what == "step" else BenchConfig.text_length,
        batch=given(options.batch, _GPU_BATCH[what] if on_gpu else _CPU_BATCH),
        dtype=given(options.dtype, "bfloat16" if on_gpu else "float32"),
        device="cuda" if on_gpu else "cpu",
        # torch would start a thread for each core of the machine, also where a container grants fewer.
        threads=given(options.threads, min(torch.get_num_threads(), machine.available_cpus())),
        compile=given(options.compile, on_gpu),
        rounds=options.rounds,
        warmup=options.warmup,
        seed=options.seed,
    )


def bench_text(result: Mapping[str, Any]) -> str:
    """The result for people: what was measured, a table, how to read it."""
    has_mfu = any(row["mfu"] is not None for row in result["rows"])
    head = ["variant", "ms", "ratio", "95% interval", "promised", "forward", "backward", "kept MB", "peak MB"]
    cells = [[*head, *(["MFU"] if has_mfu else [])]]
    cells += [[*_cells(row), *([_mfu(row)] if has_mfu else [])] for row in result["rows"]]
    return "\n".join([_title(result), *aligned(cells, left=1), *_notes(result)])


def _title(result: Mapping[str, Any]) -> str:
    text = "" if result["text_length"] is None else f", text of {result['text_length']} tokens"
    how = f"{result['dtype']}, {'compiled' if result['compile'] else 'not compiled'}"
    place = result["device_name"] + (f", threads: {result['threads']}" if result["device"] == "cpu" else "")
    return (
        f"{result['model']} model, {result['image_size']} px, patch {result['patch']}{text}, "
        f"batch {result['batch']}, {how}, {place}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{1000 * row['value']:.1f}",
        f"{row['ratio']:.3f}",
        ABSENT if row["ratio_low"] is None else f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
        f"{row['flops_ratio']:.3f}",
        f"{row['forward_ratio']:.3f}",
        f"{row['backward_ratio']:.3f}",
        f"{row['saved_bytes'] / 1e6:.1f}",
        f"{row['peak_bytes'] / 1e6:.1f}",
    ]


def _mfu(row: Mapping[str, Any]) -> str:
    return ABSENT if row["mfu"] is None else f"{row['mfu']:.1%}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    return [
        f"measured: {result['includes']}",
        f"ratio, forward, backward: times as fast as {result['reference']} right before and after, median of "
        f"{result['rounds']} rounds (95% interval of the median by ranks, from six rounds on)",
        f"promised: by FLOPs ({result['flops_rule']})",
    ]
