"""Which trials there are: every combination of the grid and the points that a run can be made of."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.config import RunConfig
from launch.reading import read_config
from launch.scaling.config import AXES, ScaleConfig, pruning_name
from pipeline.pretrain import check_pretrain

_NEVER = 1e9


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point; None stands for what the run says. Attributes as those of `GridConfig`, one value each."""

    global_batch: int
    micro_batch: int | None = None
    pruning: str = "off"
    zero_stage: int | None = None
    precision: str | None = None
    recompute: bool | None = None
    workers: int | None = None

    @property
    def name(self) -> str:
        """Of its folder: what is given, in words."""
        words = [f"b{self.global_batch}", self.pruning]
        given = {"m": self.micro_batch, "zero": self.zero_stage, "": self.precision, "w": self.workers}
        words += [f"{key}{value}" for key, value in given.items() if value is not None]
        words += [] if self.recompute is None else ["recompute" if self.recompute else "keep"]
        return "-".join(words)


@dataclass(frozen=True)
class Settled:
    """A trial that can be tried, with the whole configuration of its run."""

    trial: Trial
    run: RunConfig


@dataclass(frozen=True)
class LeftOut:
    """A combination that no run can be made of, or that is not wanted."""

    trial: Trial
    reason: str


def trials(config: ScaleConfig) -> list[Trial]:
    """The grid's combinations and the points, each once."""
    axes = [getattr(config.grid, axis) for axis in AXES]
    points: list[Mapping[str, Any]] = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*axes)]
    points += config.points
    found = [Trial(**{**point, "pruning": pruning_name(point.get("pruning", "off"))}) for point in points]
    return list(dict.fromkeys(found))


def settle(config: ScaleConfig, files: Sequence[Path], wanted: Sequence[Trial]) -> tuple[list[Settled], list[LeftOut]]:
    """Reads the configuration of each trial.

    Args:
        config: Of the experiment.
        files: Of the run that all share.
        wanted: The trials.

    Returns:
        Those that can be tried, and the others with the reason.

    Raises:
        UserError: No trial is left, or there was none.
    """
    settled, left_out = list[Settled](), list[LeftOut]()
    for trial in wanted:
        try:
            settled.append(Settled(trial, settle_one(config, files, trial)))
        except UserError as error:
            left_out.append(LeftOut(trial, str(error)))
    if not wanted:
        raise UserError("the grid is empty: give grid.global_batch at least one value, such as [32, 64], or a point")
    if not settled:
        first = left_out[0]
        raise UserError(
            f"nothing is left of {len(wanted)} combinations: {first.trial.name}: {first.reason}"
            + (f" (the others alike; {len(left_out) - 1} more)" if len(left_out) > 1 else "")
        )
    return settled, left_out


def settle_one(config: ScaleConfig, files: Sequence[Path], trial: Trial) -> RunConfig:
    """The run of a trial.

    Raises:
        UserError: It does not fit together.
    """
    run = read_config(RunConfig, files, overrides_of(config, trial))
    if run.pretrained is not None:
        raise UserError(f"pretrained={run.pretrained}: a scaling experiment pre-trains its model; leave the key out")
    workers = run.cluster.most
    check_parts(trial, workers, config.max_accumulation)
    check_processes(run)
    check_pretrain(run.pretrain, run.model, run.loader, run.engine, workers)
    return run


def overrides_of(config: ScaleConfig, trial: Trial) -> list[str]:
    """What a trial changes in the run, as on the command line."""
    values: dict[str, Any] = {**config.shared, **config.known_prunings[trial.pruning]}
    values |= {
        "out": str(Path(config.out).expanduser()),
        "pretrain.loop.global_batch": trial.global_batch,
        # One more update than is made: the loop is left before it would write a checkpoint.
        "pretrain.loop.samples": (steps_of(config, trial) + 1) * trial.global_batch,
        "pretrain.loop.log_every": 1,
        "pretrain.loop.checkpoint_seconds": _NEVER,
        "checkpoint.path": None,
        "budget.minutes": None,
        "engine.accumulation": 1,
        "engine.micro_batch": trial.micro_batch,
    }
    given = {"engine.zero_stage": trial.zero_stage, "engine.precision": trial.precision}
    given |= {"engine.recompute": trial.recompute, "cluster.workers": trial.workers}
    values |= {key: value for key, value in given.items() if value is not None}
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def steps_of(config: ScaleConfig, trial: Trial) -> int:
    """Updates of a trial."""
    return max(config.min_steps, -(-config.samples // trial.global_batch))


def check_parts(trial: Trial, workers: int, max_accumulation: int | None) -> None:
    """Refuses a global batch that is not made of whole micro-batches.

    Raises:
        UserError: Naming the numbers.
    """
    unit = (trial.micro_batch or 1) * workers
    if trial.global_batch % unit:
        raise UserError(f"global_batch={trial.global_batch} is no multiple of micro_batch x workers = {unit}")
    parts = trial.global_batch // unit if trial.micro_batch is not None else 1
    if max_accumulation is not None and parts > max_accumulation:
        raise UserError(f"global_batch={trial.global_batch} takes {parts} parts, max_accumulation={max_accumulation}")


def check_processes(run: RunConfig) -> None:
    """Refuses what the launcher or the engine cannot start.

    Raises:
        UserError: Naming the keys.
    """
    workers = run.cluster.most
    if workers == 1:
        return
    if run.engine.name == "torch":
        raise UserError(f"workers={workers} do not go with engine.name=torch, one plain process; set it to deepspeed")
    if run.launcher == "local" and (run.cluster.gpus_per_worker or run.loader.workers):
        raise UserError(
            f"workers={workers} with launcher=local are for the CPU, with loader.workers 0; set launcher to ray"
        )
