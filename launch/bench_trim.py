"""`trimline bench trim`: how much of the speed that trimming promises arrives."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from launch import machine
from launch.answers import Answer
from launch.bench_progress import counted
from launch.flops import read_model
from launch.report.table import aligned
from pipeline.measure.bench_trim import BenchTrimConfig, parts_of, run_trim_bench, runs_of


def trim_bench_command(options: argparse.Namespace) -> Answer:
    """Measures and says so.

    Raises:
        UserError: No such model, or options that nothing can be measured with.
    """
    model = read_model(options.model, options.image_size)
    config = _config(options)
    with counted("trim", runs_of(config)) as tick:
        result = run_trim_bench(model, config, tick)
    result |= {"model": options.model, "image_size": model.vision.height, "commit": machine.git_commit()}
    result["device_name"] = result["device_name"] or machine.hardware()["processor"]
    return 0, result, trim_bench_text(result)


def _config(options: argparse.Namespace) -> BenchTrimConfig:
    on_gpu = torch.cuda.is_available() if options.device is None else options.device == "cuda"
    return BenchTrimConfig(
        targets=tuple(options.targets),
        text_length=options.text_length,
        batch=options.batch,
        batches=options.batches,
        dtype=options.dtype or ("bfloat16" if on_gpu else "float32"),
        device="cuda" if on_gpu else "cpu",
        threads=options.threads or min(torch.get_num_threads(), machine.available_cpus()),
        rounds=options.rounds,
        warmup=options.warmup,
        seed=options.seed,
    )


def trim_bench_text(result: Mapping[str, Any]) -> str:
    """The result for people."""
    rows = result["rows"]
    threads = f", threads: {result['threads']}" if result["device"] == "cpu" else ""
    title = (
        f"{result['model']}, {result['image_size']} px, texts of about {result['text_length']} tokens, batch "
        f"{result['batch']}{_several(result['batches'])}, {result['dtype']}, not compiled, "
        f"{result['device_name']}{threads}"
    )
    head = ["model", "ms", "times as fast", "quartiles", "promised", "realised", "trimmers", "kept"]
    where = ["ms by part", *parts_of(rows)]
    return "\n".join(
        [
            title,
            *aligned([head, *map(_cells, rows)], left=1),
            *aligned([where, *([row["name"], *_parts(row, where[1:])] for row in rows)], left=1),
            f"median of {result['rounds']} rounds against {result['reference']} in the same round; promised: by "
            f"multiply-accumulates of what was decided{_padding(result)}; kept: tokens, heads of self- (msa) and "
            "cross-attention (mca)",
        ]
    )


def _several(batches: int) -> str:
    return f" ({batches} different ones a lap)" if batches > 1 else ""


def _padding(result: Mapping[str, Any]) -> str:
    """What packing saves beside trimming."""
    padding = result["padding"]
    return "" if padding == 1 else f", against {result['reference']} with padding, which is {padding:.3f} times without"


def _cells(row: Mapping[str, Any]) -> list[str]:
    kept = " ".join(f"{name} {share:.2f}" for name, share in row["kept"].items())
    return [
        row["name"],
        f"{1000 * row['value']:.1f}",
        f"{row['ratio']:.3f}",
        f"{row['ratio_q1']:.3f} to {row['ratio_q3']:.3f}",
        f"{row['flops_ratio']:.3f}",
        f"{row['realised']:.1%}",
        f"{row['trimmers_share']:.2%}",
        kept,
    ]


def _parts(row: Mapping[str, Any], names: list[str]) -> list[str]:
    return [f"{1000 * row['parts'].get(name, 0.0):.1f}" for name in names]
