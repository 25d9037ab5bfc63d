"""What a trial gave, as one row: how fast, how much memory, how far its loss came."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from launch.config import RunConfig
from launch.report.html import short_commit
from launch.scaling.grid import Trial
from launch.scaling.trial import OK, machine_in_words
from pipeline.engine_config import EngineConfig

_CHANCE = 0.98  # share of the loss of guessing above which nothing counts as learned
NOISE = ("noise_scale", "critical_batch")


def settings_of(trial: Trial, run: RunConfig) -> dict[str, Any]:
    """What a trial was tried with, whether its grid said so or its run."""
    workers, engine = run.cluster.most, run.engine
    parts = _accumulation(engine, trial.global_batch, workers)
    return {
        "name": trial.name,
        "backbone": run.model.backbone,
        "global_batch": trial.global_batch,
        "micro_batch": trial.global_batch // workers // parts,
        "accumulation": parts,
        "pruning": trial.pruning,
        "lr": run.pretrain.optimizer.scaled(trial.global_batch).lr,
        "zero_stage": engine.zero_stage if engine.name == "deepspeed" else None,
        "precision": engine.precision,
        "recompute": engine.recompute,
        "workers": workers,
    }


def _accumulation(engine: EngineConfig, batch: int, workers: int) -> int:
    return engine.resolved("pretrain", batch, workers).accumulation


def row_of(settings: Mapping[str, Any], found: Mapping[str, Any], warmup: int, judged: int) -> dict[str, Any]:
    """A row of the table; what was not measured is None.

    Args:
        settings: Of `settings_of`.
        found: Of `launch.scaling.trial.carried_out`.
        warmup: Steps at the beginning whose time does not count.
        judged: Samples of the fixed batch.
    """
    by = {"machine": machine_in_words(found["machine"]), "commit": short_commit(found["commit"] or "")}
    row = {**settings, **by, "status": found["status"], "reason": found["reason"]} | dict.fromkeys(MEASURED)
    if found["status"] != OK:
        return row
    seconds, macs = found["step_seconds"], found["macs"]
    step = median(seconds[warmup:])
    rate = settings["global_batch"] / step
    lines = found["lines"]
    row |= {
        "steps": len(seconds),
        "samples": len(seconds) * settings["global_batch"],
        "seconds": sum(seconds),
        "step_ms": 1000 * step,
        "samples_per_second": rate,
        "data_wait": sum(found["wait_seconds"][warmup:]) / sum(seconds[warmup:]),
        "peak_bytes": found["peak_bytes"],
        "train_loss": lines[-1]["loss"],
    }
    row |= {name: last_of(lines, name) for name in NOISE}
    if macs is not None:
        each = rate / settings["workers"]
        row |= {"gmacs_per_sample": macs / 1e9, "gmacs_per_second_per_worker": macs * each / 1e9}
        row["mfu"] = None if found["peak_flops"] is None else 2 * macs * each / found["peak_flops"]
    if found["evaluations"]:
        row["fixed_loss"] = found["evaluations"][-1]["loss"]
        row["at_chance"] = at_chance(found["evaluations"][-1], judged)
    return row


def at_chance(losses: Mapping[str, float], batch: int) -> bool:
    """Whether a contrastive loss is the only one, and still that of guessing: then it tells trials apart by nothing."""
    parts = [name for name in losses if name.startswith("loss/")]
    return parts == ["loss/itc"] and losses["loss/itc"] > _CHANCE * math.log(batch)


MEASURED = (
    "steps", "samples", "seconds", "step_ms", "samples_per_second", "data_wait", "peak_bytes", "gmacs_per_sample",
    "gmacs_per_second_per_worker", "mfu", "noise_scale", "critical_batch", "train_loss", "fixed_loss", "at_chance",
    "goal", "steps_to_goal", "samples_to_goal", "seconds_to_goal", "goal_at_first_look",
)  # fmt: skip


def last_of(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last value of a key."""
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def curve_of(found: Mapping[str, Any], warmup: int) -> dict[str, Any]:
    """What is drawn of a trial: its losses on the fixed batch, and its noise scale over samples."""
    macs, steps = found["macs"], found["step_seconds"]
    points = [
        {
            **point,
            "seconds": settled_seconds(steps, point["step"], warmup),
            "macs": None if macs is None else macs * point["samples"],
        }
        for point in found["evaluations"]
    ]
    noise = [[line["samples"], line["noise_scale"]] for line in found["lines"] if line["noise_scale"] is not None]
    return {"evaluations": points, "noise": noise}


def settled_seconds(seconds: Sequence[float], done: int, warmup: int) -> float:
    """Time of the first `done` steps, in which those of the warm-up count as the median of the later ones."""
    return min(done, warmup) * median(seconds[warmup:]) + sum(seconds[warmup:done])


def goal_of(wanted: float | None, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The loss that times are taken to: the one wanted, or the worst of those that trials end with.

    A trial that only guesses sets no goal: all others are there from the beginning. Where all guess there is none.
    """
    ends = [row["fixed_loss"] for row in rows if row["fixed_loss"] is not None and not row["at_chance"]]
    return wanted if wanted is not None else max(ends, default=None)


def reached(evaluations: Sequence[Mapping[str, float]], goal: float) -> dict[str, float] | None:
    """Steps, samples and seconds at which a loss was first reached, on a straight line between two looks.

    None where it was not; where the first look was below it already, that one's, with ``first_look`` set.
    """
    names = ("step", "samples", "seconds")
    before: Mapping[str, float] | None = None
    for point in evaluations:
        if point["loss"] <= goal:
            if before is None:
                return {**{name: point[name] for name in names}, "first_look": True}
            share = (before["loss"] - goal) / (before["loss"] - point["loss"])
            between = {name: before[name] + share * (point[name] - before[name]) for name in names}
            return {**between, "first_look": False}
        before = point
    return None


def with_goal(rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Any], goal: float | None) -> list[dict[str, Any]]:
    """The rows with what it took to reach a loss."""
    finished = []
    for row in rows:
        at = None if goal is None or row["name"] not in curves else reached(curves[row["name"]]["evaluations"], goal)
        values = None if at is None else (at["step"], at["samples"], at["seconds"], at["first_look"])
        names = ("steps_to_goal", "samples_to_goal", "seconds_to_goal", "goal_at_first_look")
        took = dict.fromkeys(names) if values is None else dict(zip(names, values, strict=True))
        finished.append({**row, "goal": goal, **took})
    return finished
