"""How many processes a run gets, with what, and for how long."""

from dataclasses import dataclass

from data_prep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The processes that train together.

    Attributes:
        workers: Processes of the pre-training stage; every other stage has one.
        cpus_per_worker: CPUs, and so threads, of each.
        gpus_per_worker: GPUs of each; 0 trains on the CPU.
        address: A Ray cluster that runs already, such as ``auto`` or ``ray://head:10001``; without one, a local
            cluster is started for the run and stopped after it.
        restarts: How often a stage is started again from its checkpoint when one of its processes dies.
    """

    workers: int = 2
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    address: str | None = None
    restarts: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"cluster.workers={self.workers} must be at least 1")
        if self.cpus_per_worker <= 0:
            raise UserError(f"cluster.cpus_per_worker={self.cpus_per_worker} must be above 0; try 1")
        if self.gpus_per_worker < 0:
            raise UserError(f"cluster.gpus_per_worker={self.gpus_per_worker} must be 0 or more")
        if self.restarts < 0:
            raise UserError(f"cluster.restarts={self.restarts} must be 0 or more")


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
        if self.minutes is not None and self.minutes <= 0:
            raise UserError(f"budget.minutes={self.minutes} must be above 0; leave it out for no limit")
        if not 0 < self.pretrain_share <= 1:
            raise UserError(f"budget.pretrain_share={self.pretrain_share} must be above 0 and at most 1; try 0.5")
