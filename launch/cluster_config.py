"""How many processes a run gets, with what, and for how long."""

import math
from dataclasses import dataclass
from typing import Literal

from data_prep.errors import UserError

_LEAST_SILENCE = 3.0


@dataclass(frozen=True, kw_only=True)
class WorkerRange:
    """How many processes there may be; of these counts those are used that divide the batch.

    Attributes:
        min: With fewer a stage waits for machines.
        max: More are not used.
    """

    min: int
    max: int


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The processes that train together, and what is done when one of them is lost.

    Attributes:
        workers: Processes of the pre-training stage; every other stage has one. With ``{min, max}`` it begins with
            what the cluster has, goes on with what is left, and grows again.
        cpus_per_worker: CPUs, and so threads, of each.
        gpus_per_worker: GPUs of each; 0 trains on the CPU. A part of one, such as 0.5, is for runs of one worker, whose
            trim stages then share a GPU.
        placement: Where the workers of a stage stand: ``pack`` on as few machines as will do, ``spread`` on as many;
            ``strict_pack`` and ``strict_spread`` want one machine for all, and one for each, and a number of workers
            that is no range.
        address: A Ray cluster that runs already, such as ``auto`` or ``ray://head:10001``; without one, a local
            cluster is started for the run and stopped after it.
        restarts: How often a stage is started again from its newest checkpoint when one of its processes is lost,
            without a newer checkpoint in between; an error of the program's or of the user's is not tried again.
        silent_seconds: Time without a sign of life after which a process counts as stuck and is ended; 0 for never.
        stall_seconds: Time without a step, from the first one on, after which a process ends itself as stuck; 0 for
            never. It must be longer than whatever a step may wait for, such as data; waiting for a checkpoint to be
            written does not count.
        wait_seconds: Time that a stage waits for machines that are not there, or not there any more.
        notice_seconds: Time that a stage has for a last checkpoint after SIGTERM.
    """

    workers: int | WorkerRange = 2
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    address: str | None = None
    restarts: int = 3
    silent_seconds: float = 15.0
    stall_seconds: float = 600.0
    wait_seconds: float = 600.0
    notice_seconds: float = 30.0

    def __post_init__(self) -> None:
        if isinstance(self.workers, int) and self.workers < 1:
            raise UserError(f"cluster.workers={self.workers} must be at least 1")
        if isinstance(self.workers, WorkerRange) and not 1 <= self.workers.min <= self.workers.max:
            least, most = self.workers.min, self.workers.max
            raise UserError(f"cluster.workers={{min: {least}, max: {most}}} must have 1 <= min <= max")
        if isinstance(self.workers, WorkerRange) and self.placement.startswith("strict"):
            raise UserError(
                f"cluster.placement={self.placement} wants one number of workers, not a range: "
                f"set --cluster.workers {self.workers.max}, or placement {self.placement.removeprefix('strict_')}"
            )
        if not self.cpus_per_worker > 0:
            raise UserError(f"cluster.cpus_per_worker={self.cpus_per_worker} must be above 0; try 1")
        if not self.gpus_per_worker >= 0:
            raise UserError(f"cluster.gpus_per_worker={self.gpus_per_worker} must be 0 or more")
        if self.gpus_per_worker % 1 and max(self.most, self.gpus_per_worker) > 1:
            raise UserError(
                f"cluster.gpus_per_worker={self.gpus_per_worker:g} must be whole, or 0, where there is more than 1 "
                f"worker or GPU (cluster.workers={self.most}): processes that train together cannot share a GPU; "
                "set --cluster.gpus_per_worker 1"
            )
        for name in ("restarts", "silent_seconds", "stall_seconds", "wait_seconds", "notice_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"cluster.{name}={getattr(self, name)} must be 0 or more, and finite")
        if 0 < self.silent_seconds < _LEAST_SILENCE:
            raise UserError(
                f"cluster.silent_seconds={self.silent_seconds} must be 0 or at least {_LEAST_SILENCE:g}: signs of life "
                "come once a second"
            )

    @property
    def counts(self) -> range:
        """The numbers of workers that may be, the smallest first."""
        if isinstance(self.workers, int):
            return range(self.workers, self.workers + 1)
        return range(self.workers.min, self.workers.max + 1)

    @property
    def most(self) -> int:
        """The largest number of workers that may be."""
        return self.counts[-1]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """A limit on training time; schedules are fitted into it, so that training ends complete.

    Attributes:
        minutes: Minutes of training in all, without start-up and evaluation; None means as long as it takes.
        pretrain_share: The part of it that pre-training gets; the trim stages share the rest.
    """

    minutes: float | None = None
    pretrain_share: float = 0.5

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"budget.minutes={self.minutes} must be above 0 and finite; leave it out for no limit")
        if not 0 < self.pretrain_share <= 1:
            raise UserError(f"budget.pretrain_share={self.pretrain_share} must be above 0 and at most 1; try 0.5")
