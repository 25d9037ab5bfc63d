"""What a scale experiment of three trials leaves, made by hand."""

from collections.abc import Callable
from typing import Any

from launch.scaling.probing import entry_of, with_gain
from launch.scaling.recommend import recommendation
from launch.scaling.rows import MEASURED, with_goal
from pipeline.measure.largest_batch import Bounds, Probe, search

GIB = 2**30


def straight(slope: float) -> Callable[[int], Probe]:
    return lambda batch: Probe(batch, 100 + slope * batch <= 1000, int(100 + slope * batch))


def row(name: str, **more: Any) -> dict[str, Any]:
    settings = {
        "name": name, "backbone": "albef", "global_batch": 32, "micro_batch": 16, "accumulation": 2, "pruning": "off",
        "lr": 0.001,
        "zero_stage": None, "precision": "fp32", "recompute": False, "workers": 1, "status": "ok", "reason": "",
        "machine": "Example CPU, 2 CPUs, torch 2", "commit": "0123456789",
    }  # fmt: skip
    numbers = dict.fromkeys(MEASURED) | {"samples_per_second": 10.0, "step_ms": 3200.0, "peak_bytes": GIB}
    return {**settings, **numbers, **more}


def evaluations(*losses: float) -> list[dict[str, Any]]:
    return [
        {"step": 2 * at, "samples": 64 * at, "seconds": 5.0 * at, "macs": 1e9 * at, "loss": loss}
        for at, loss in enumerate(losses, 1)
    ]


def whole() -> dict[str, Any]:
    rows = [
        row("b32-off", fixed_loss=4.0, noise_scale=70.0, critical_batch=80.0, gmacs_per_second_per_worker=9.0),
        row("b64-query", pruning="query", global_batch=64, fixed_loss=3.5, samples_per_second=13.0),
        row("b128-off", global_batch=128, status="out of memory", reason="<2 GiB>") | dict.fromkeys(MEASURED),
    ]
    curves = {
        each["name"]: {**each, "evaluations": evaluations(6.0, each["fixed_loss"]), "noise": [[64, 50.0], [128, 70.0]]}
        for each in rows[:2]
    }
    searched = search(straight(30.0), Bounds(limit_bytes=1000, first=(4, 8)))
    entries = [entry_of(name, searched, {"visual_encoder": 8.0}, {31: ""}) for name in ("off", "query")]
    largest = {"limit_bytes": 1000, "workers": 1, "found": [with_gain(entry, entries[0]) for entry in entries]}
    rows = with_goal(rows, curves, 4.0)
    return {
        "name": "t", "started": "2026-01-01T00:00:00+00:00", "seconds": 60.0, "command": "trimline scale x",
        "versions": {"torch": "2"}, "commit": "0123456789abcdef", "hardware": {"cpus": 2}, "rows": rows,
        "curves": curves, "left_out": [{"name": "b9-off", "reason": "no multiple"}], "largest": largest,
        "recommendation": recommendation(rows, largest), "notes": ["a contrastive loss depends on the batch"],
    }  # fmt: skip
