"""A comparison's folder, made by hand."""

from pathlib import Path
from typing import Any

import yaml

from tests.launch.report.folders import save

WEIGHTS = {"lambda_0": 0.0, "lambda_0.5": 0.5, "query": 0.8, "lambda_1": 1.0}
TARGETS = {1.0: (80.0, 0.012), 2.0: (78.0, 0.006)}
SEEDS = (0, 1, 2)


def config(variant: str, seed: int) -> dict[str, Any]:
    elip = {"vision_weight": WEIGHTS.get(variant, 0.8), "merge": variant != "prune_only"}
    method = "none" if variant == "unpruned" else "elip"
    return {"out": f"{variant}-{seed}", "seed": seed, "data": {"seed": seed},
            "pretrain": {"pruning": {"method": method, "elip": elip}}}  # fmt: skip


def run(folder: Path, variant: str, seed: int, gain: float) -> dict[str, Any]:
    name = f"{variant}-samples-{seed}"
    save(folder / name / "config.yaml", yaml.safe_dump(config(variant, seed)))
    save(folder / name / "report.html", "<p>of the run</p>")
    started = f"2026-01-05T1{seed}:00:00+00:00"
    facts = {"commit": "ab" * 20, "seconds": 60.0, "versions": {"torch": f"2.{15 + seed % 2}.0"}}
    save(folder / name / "run.json", {**facts, "started": started, "finished": started.replace(":00:00", ":01:00")})
    common = {"task": "statement", "split": "test", "metric": "accuracy"}
    results = [
        {**common, "target": target, "value": value + seed + gain, "gmacs": gmacs}
        for target, (value, gmacs) in TARGETS.items()
    ]
    results.append(
        {"task": "retrieval", "split": "test", "metric": "R@10", "target": None, "value": 60.0 + gain * seed}
    )
    about = {"variant": variant, "budget": "samples", "seed": seed, "samples": 64}
    return {**about, "step_ms": 10.0 - gain, "peak_bytes": 2**30, "results": results}


def build_comparison(folder: Path) -> Path:
    """Six variants of three seeds each, of which one run failed."""
    gains = {"unpruned": 0.0, "query": 1.0, "lambda_0": -2.0, "lambda_0.5": 0.5, "lambda_1": 0.0, "prune_only": 0.25}
    runs = [run(folder, variant, seed, gain) for variant, gain in gains.items() for seed in SEEDS]
    failures = {"prune_only-samples-2": "the disk is <full>"}
    runs = [one for one in runs if (one["variant"], one["seed"]) != ("prune_only", 2)]
    facts = {
        "command": "trimline compare pruning.yaml",
        "commit": "0f" * 20,
        "hardware": {"processor": "A CPU", "cpus": 2},
    }
    value = {"reference": "unpruned", "trials": 18, "runs": runs, "failures": failures, "facts": facts}
    save(folder / "comparison.json", value)
    return folder
