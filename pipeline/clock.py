"""How far training is: by steps, or by time where a budget ends it earlier."""

import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from pipeline.objectives.gather import world_size


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over training: linear warm-up, then a fall from the peak to `final_scale` of it.

    Attributes:
        shape: How it falls: ``cosine``, ``linear``, or ``exponential`` (by the same factor in equal times: BLIP's 0.9
            an epoch over 20 epochs is a `final_scale` of 0.12).
        warmup_share: Share of training that warms up.
        final_scale: Learning rate at the end over its peak.
    """

    shape: Literal["cosine", "linear", "exponential"] = "cosine"
    warmup_share: float = 0.05
    final_scale: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_share < 1 or not 0 <= self.final_scale <= 1:
            raise UserError(
                f"schedule.warmup_share={self.warmup_share} must lie in [0, 1) and "
                f"schedule.final_scale={self.final_scale} in [0, 1]"
            )
        if self.shape == "exponential" and not self.final_scale:
            raise UserError("schedule.final_scale=0 is never reached by schedule.shape=exponential; give 0.1, say")

    def lr_scale(self, progress: float) -> float:
        """Share of the peak learning rate at a share of training."""
        if progress < self.warmup_share:
            return progress / self.warmup_share
        done = (progress - self.warmup_share) / (1 - self.warmup_share)
        if self.shape == "exponential":
            return float(self.final_scale**done)
        left = 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi)))) if self.shape == "cosine" else 1 - done
        return self.final_scale + (1 - self.final_scale) * left


@dataclass(frozen=True)
class Tick:
    """What all processes agree on before a step.

    Attributes:
        progress: Share of training done, 0 to 1. Schedules follow it, so they are complete at the end.
        save: Whether to write a checkpoint first.
        failed: Whether an earlier checkpoint could not be written.
        leave: Whether somebody wants training to save and end here.
    """

    progress: float
    save: bool
    failed: bool = False
    leave: bool = False

    @property
    def ends(self) -> bool:
        """Whether training is over."""
        return self.progress >= 1


class Clock:
    """Progress by steps or by a budget of seconds, whichever is further; the main process decides for all.

    Args:
        steps: Steps of a whole training without a budget.
        budget_seconds: Seconds of training after which it ends; None for no bound.
        save_seconds: Seconds between checkpoints.
        spent: Seconds of training that the checkpoint had spent.
        device: Where the process group can reach a tensor: nccl serves those of a GPU only.
    """

    def __init__(
        self,
        steps: int,
        budget_seconds: float | None,
        save_seconds: float,
        spent: float = 0.0,
        device: str = "cpu",
    ) -> None:
        self.steps = steps
        self.budget_seconds = budget_seconds
        self.save_seconds = save_seconds
        self.device = device
        self.started = time.monotonic() - spent
        self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all restarts."""
        return time.monotonic() - self.started

    def tick(self, step: int, failed: bool = False, leave: bool = False) -> Tick:
        """Agree on progress before step number `step`, on whether a checkpoint failed, and on whether to leave."""
        progress = step / self.steps
        if self.budget_seconds is not None:
            progress = max(progress, self.seconds / self.budget_seconds)
        save = step > 0 and time.monotonic() - self.saved >= self.save_seconds
        progress = min(1.0, progress)
        if world_size() > 1:
            flags = [progress, float(save), float(failed), float(leave)]
            agreed = torch.tensor(flags, dtype=torch.float64, device=self.device)
            dist.broadcast(agreed, 0)
            progress = float(agreed[0])
            save, failed, leave = (bool(flag) for flag in agreed[1:])
        if save:
            self.saved = time.monotonic()
        return Tick(progress, save, failed, leave)
