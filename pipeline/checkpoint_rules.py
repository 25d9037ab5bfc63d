"""Where checkpoints go, which of them stay, and who is asked and told while one is written."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.limits import at_least


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where checkpoints go, and which of them stay; how often they are made is the loop's `checkpoint_seconds`.

    Attributes:
        path: Folder or URL that fsspec knows (``s3://bucket/run``), in which each stage has a folder of its name;
            None for the stage's own folder. Another path does not make a stage begin anew: its checkpoints are looked
            for there.
        keep_last: How many of the newest stay.
        keep_every_steps: Those after every so many steps stay too, and are made at these very steps; 0 for none.
        keep_best: How many stay of those whose mean of `best_metric` since the checkpoint before is best.
        best_metric: A value of metrics.jsonl, such as ``loss`` or ``loss/itc``.
        best_is: Whether its ``lowest`` or ``highest`` values are the best.
        if_full: What follows where the disk or store of the checkpoints is full: ``stop`` ends the run with a line,
            ``go_on`` logs it and tries again at the next one; the last one of a training must succeed. It needs a
            `path` on another disk than the run's folder, whose log must go on, too. A store that does not answer at
            all may miss two in a row even with ``stop``.
    """

    path: str | None = None
    keep_last: int = 2
    keep_every_steps: int = 0
    keep_best: int = 0
    best_metric: str = "loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    if_full: Literal["stop", "go_on"] = "stop"

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise UserError(
                f"checkpoint.keep_last={self.keep_last} must be at least 1: a run continues from its last checkpoint"
            )
        at_least(self, "checkpoint", 0, "keep_every_steps", "keep_best")
        if self.if_full == "go_on" and self.path is None:
            raise UserError(
                "checkpoint.if_full=go_on needs a checkpoint.path on another disk or store: where the run's own folder "
                "is full, neither can its log be written"
            )
        if self.path is not None and not self.path.strip():
            raise UserError("checkpoint.path='' must be a folder or a URL; leave it out for the run's own folder")

    def place_of(self, stage: Path) -> Path | str:
        """The folder or URL of a stage's checkpoints, by the stage's own folder."""
        return stage / "checkpoints" if self.path is None else f"{self.path.rstrip('/')}/{stage.name}"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What a store of checkpoints asks and tells those around it.

    Attributes:
        check: Called by the main rank before it changes anything; raises where another run has taken the place.
        silent_seconds: Time without a sign of another rank, while a checkpoint is written, after which it counts as
            lost; 0 for torch's own half hour. However long a rank may write, it gives signs meanwhile.
        on_loss: Told, in the background, that another rank was lost. Training may wait for that rank just then, and
            would not hear of it.
    """

    check: Callable[[], None] = lambda: None
    silent_seconds: float = 0.0
    on_loss: Callable[[str], None] = lambda words: None


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A complete checkpoint.

    Attributes:
        name: Of its folder.
        step: Steps done before it.
        metrics: Means of what was logged since the one before.
        fingerprint: Of what was trained.
    """

    name: str
    step: int
    fingerprint: str = ""
    metrics: Mapping[str, float]


def kept(saved: Sequence[Saved], config: CheckpointConfig, chosen_by: str | None = None) -> set[str]:
    """Names of those that stay.

    Args:
        saved: All, the newest first.
        config: The rules; one that any of them keeps stays.
        chosen_by: A metric of which the highest stays too; None for none.
    """
    names = {entry.name for entry in saved[: config.keep_last]}
    if config.keep_every_steps:
        names |= {entry.name for entry in saved if entry.step % config.keep_every_steps == 0}
    sign = 1 if config.best_is == "lowest" else -1
    told = [entry for entry in saved if math.isfinite(entry.metrics.get(config.best_metric, math.nan))]
    best = sorted(told, key=lambda entry: sign * entry.metrics[config.best_metric])
    highest = None if chosen_by is None else highest_of(saved, chosen_by)
    return names | {entry.name for entry in best[: config.keep_best]} | ({highest.name} if highest else set())


def highest_of(saved: Iterable[Saved], metric: str) -> Saved | None:
    """The one with the highest value of a metric, of equal ones the first that was made; None where none has it."""
    told = [entry for entry in saved if math.isfinite(entry.metrics.get(metric, math.nan))]
    return max(told, key=lambda entry: (entry.metrics[metric], -entry.step), default=None)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that JSON and a comparison know; by one that is no number, a checkpoint is none of the best."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


class Means:
    """Means of a step's values since they were last asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in one step; the values stay on their device."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self) -> dict[str, float]:
        """The means by name; it begins anew."""
        sums, count = self._sums, self._count
        self._sums, self._count = {}, 0
        if not sums:
            return {}
        means = (torch.stack([value.detach().float().cpu() for value in sums.values()]) / count).tolist()
        return dict(zip(sums, means, strict=True))
