"""What `trimline scale` tries, and within which limits."""

import re
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from data_prep.errors import UserError
from pipeline.limits import above_zero, at_least

Pruning = bool | str
"""A name; YAML reads a bare ``off`` as false."""

SCALE = "scale.json"
"""In an experiment's folder: all that was found."""
OFF = "off"
_NAME = re.compile(r"\w[\w.-]*")
PRUNINGS: dict[str, dict[str, Any]] = {
    OFF: {"pretrain.pruning.method": "none"},
    "stage": {"pretrain.pruning.method": "elip", "pretrain.pruning.elip.guidance": "stage"},
    "query": {"pretrain.pruning.method": "elip", "pretrain.pruning.elip.guidance": "query"},
}
"""Prunings that have a name, with what they change in the run."""


def pruning_name(value: Pruning) -> str:
    """The name that is meant."""
    return OFF if value is False else str(value)


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Values of each axis; every combination is a trial. null stands for what the run says.

    Attributes:
        global_batch: Samples of an update over all workers.
        micro_batch: Samples of one forward pass of a worker; the update is accumulated from as many as that takes. null
            makes no parts.
        pruning: ``off``, ``stage``, ``query``, or a name of `ScaleConfig.prunings`.
        zero_stage: What DeepSpeed splits over the workers.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        recompute: Whether activations are computed again in the backward (activation checkpointing).
        workers: Processes that train together.
    """

    global_batch: tuple[int, ...] = ()
    micro_batch: tuple[int | None, ...] = (None,)
    pruning: tuple[Pruning, ...] = (OFF, "query")
    zero_stage: tuple[int | None, ...] = (None,)
    precision: tuple[str | None, ...] = (None,)
    recompute: tuple[bool | None, ...] = (None,)
    workers: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        for name in ("global_batch", "micro_batch", "workers"):
            for value in getattr(self, name):
                if value is not None and value < 1:
                    raise UserError(f"grid.{name}={value} must be at least 1")


AXES = tuple(axis.name for axis in fields(GridConfig))


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """What each trial may take; one that takes more is recorded as such.

    Attributes:
        memory_gib: Most memory of each worker: of its GPU, or resident on a CPU. null for no limit but the machine's.
        seconds: Of a trial, start-up included; one that hangs ends there too.
    """

    memory_gib: float | None = None
    seconds: float = 600.0

    def __post_init__(self) -> None:
        above_zero(self, "limits", "seconds")
        if self.memory_gib is not None:
            above_zero(self, "limits", "memory_gib")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The batch that all trials are judged by, for a contrastive loss itself depends on the batch.

    Attributes:
        split: Of the data; kept out of training. null judges by nothing.
        batch: Samples of it.
        every_samples: Training samples between looks at it.
        goal: Loss on it that times are taken to; by default the worst of those that the trials end with.
    """

    split: str | None = "val"
    batch: int = 64
    every_samples: int = 256
    goal: float | None = None

    def __post_init__(self) -> None:
        at_least(self, "judge", 2, "batch")
        at_least(self, "judge", 1, "every_samples")


@dataclass(frozen=True, kw_only=True)
class LargestConfig:
    """The search for the largest micro-batch.

    Attributes:
        memory_gib: The limit, as of `LimitConfig.memory_gib`; null for no search on a CPU, and for all of the
            smallest GPU that nvidia-smi lists where the experiment is started (no search where it lists none).
        pruning: Which prunings are compared; the first one is the reference.
        first: The two micro-batches that the line of memory is drawn through.
        step: Between micro-batches that are told apart.
        most: No larger one is tried.
        probes: No more are made of one pruning.
        steps: Updates of a probe.
    """

    memory_gib: float | None = None
    pruning: tuple[Pruning, ...] = (OFF, "query")
    first: tuple[int, int] = (8, 16)
    step: int = 1
    most: int = 4096
    probes: int = 10
    steps: int = 2

    def __post_init__(self) -> None:
        at_least(self, "largest", 1, "step", "steps")
        at_least(self, "largest", 3, "probes")
        if self.memory_gib is not None:
            above_zero(self, "largest", "memory_gib")
        if not 2 <= self.first[0] < self.first[1] <= self.most:
            raise UserError(f"largest.first={list(self.first)} must be two rising batches between 2 and {self.most}")
        if (self.first[1] - self.first[0]) % self.step:
            raise UserError(f"largest.first={list(self.first)} must be whole steps of {self.step} apart (largest.step)")
        if not self.pruning or pruning_name(self.pruning[0]) != OFF:
            raise UserError(
                f"largest.pruning={list(self.pruning)} must begin with off, which the others are held against"
            )


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """A batch-size scaling experiment.

    Attributes:
        name: Shown in its report.
        out: Folder that it writes; the same folder again runs what is new or changed, and nothing else.
        base: YAML files of the run that all trials share, as `trimline pretrain` takes them.
        shared: Overrides that all share, such as ``loader.height: 128``.
        prunings: Further prunings by name, with the overrides that each is: ratios, other methods.
        grid: Combinations to try.
        points: Further trials, each with keys of `grid` and one value for each.
        max_accumulation: Trials with more parts than this are left out; null for no such bound.
        samples: Of each trial; rounded up to whole updates.
        min_steps: Updates that each trial makes at least.
        warmup: Updates at the beginning whose time does not count.
        limits: Of each trial.
        judge: What they are judged by.
        largest: The search for the largest batch.
        track: Whether the rows go to wandb as well, as the run's `tracking` says.
    """

    name: str
    out: str
    base: tuple[str, ...]
    shared: dict[str, Any] = field(default_factory=dict)
    prunings: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: GridConfig = field(default_factory=GridConfig)
    points: tuple[dict[str, Any], ...] = ()
    max_accumulation: int | None = None
    samples: int = 1024
    min_steps: int = 4
    warmup: int = 1
    limits: LimitConfig = field(default_factory=LimitConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    largest: LargestConfig = field(default_factory=LargestConfig)
    track: bool = True

    def __post_init__(self) -> None:
        at_least(self, "scale", 1, "samples")
        at_least(self, "scale", 0, "warmup")
        at_least(self, "scale", self.warmup + 1, "min_steps")
        if not self.base:
            raise UserError("base=[] must name at least one configuration, such as configs/runs/demo.yaml")
        for number, point in enumerate(self.points):
            _check_point(point)
            for key, value in point.items():
                _check_value(f"points[{number}].{key}", key, value)
        given = [*self.grid.pruning, *self.largest.pruning, *(p["pruning"] for p in self.points if "pruning" in p)]
        for name in self.prunings:
            if not _NAME.fullmatch(name):
                raise UserError(f"prunings.{name}: folders are named so; take letters, digits, '.', '_' and '-'")
        for name in map(pruning_name, given):
            if name not in self.known_prunings:
                raise UserError(
                    f"pruning {name!r} is not known; give {', '.join(self.known_prunings)}, or add it to prunings"
                )

    @property
    def known_prunings(self) -> dict[str, dict[str, Any]]:
        """All that have a name."""
        return {**PRUNINGS, **self.prunings}


_COUNT, _STAGE, _WORD, _SWITCH = "a whole number of at least 1", "a whole number from 0 to 3", "a word", "true or false"
_WANTED = {
    "global_batch": _COUNT, "micro_batch": _COUNT, "pruning": _WORD, "zero_stage": _STAGE, "precision": _WORD,
    "recompute": _SWITCH, "workers": _COUNT,
}  # fmt: skip


def _check_value(where: str, key: str, value: Any) -> None:
    """Refuses what is no value of an axis; jsonargparse takes a point's values as they come."""
    wanted = _WANTED[key]
    whole = isinstance(value, int) and not isinstance(value, bool)
    good = {
        _COUNT: whole and value >= 1,
        _STAGE: whole and 0 <= value <= 3,
        _WORD: isinstance(value, str) or (key == "pruning" and value is False),
        _SWITCH: isinstance(value, bool),
    }
    if not good[wanted] and (value is not None or key in ("global_batch", "pruning")):
        raise UserError(f"{where}={value!r} must be {wanted}")


def _check_point(point: dict[str, Any]) -> None:
    for key in point:
        if key not in AXES:
            close = get_close_matches(key, AXES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(AXES)}"
            raise UserError(f"points: unknown key {key}; {hint}")
    if "global_batch" not in point:
        raise UserError(f"points: {point} has no global_batch; give one")
