"""The tasks that a run's pre-trained model is fine-tuned for: the run's own, and the further ones of `tasks`."""

from dataclasses import dataclass, replace

from launch.config import RunConfig
from pipeline.trimming.methods import SMART
from pipeline.trimming.target import Target


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of them. Its stages are made, checked and looked at as those of a run that has no other.

    Attributes:
        config: The run with this task's `trim` and `evaluate`, and without further tasks.
        name: Of a further task; None for the run's own.
        vocabulary: Whether its questions count for a vocabulary that the run trains.
    """

    config: RunConfig
    name: str | None = None
    vocabulary: bool = True

    @property
    def title(self) -> str:
        """What its stages and its results are called by."""
        return self.name or self.config.trim.task

    @property
    def key(self) -> str:
        """Where it stands in the run's configuration; empty for the run's own."""
        return "" if self.name is None else f"tasks.{self.name}"

    @property
    def targets(self) -> list[float | str]:
        """What it is fine-tuned to, a teacher before its students."""
        return sorted(self.config.trim.targets, key=lambda each: not Target.parse(each).is_full)

    def teaches(self, target: float | str) -> bool:
        """Whether the model of a target is one that the others of the task wait for."""
        return self.config.trim.needs_full and Target.parse(target).is_full

    @property
    def trims(self) -> list[str]:
        """Names of the stages that fine-tune for it."""
        return [self.trim_name(target) for target in self.targets]

    @property
    def survivors(self) -> str:
        """Name of the stage that draws what its models keep."""
        return "survivors" if self.name is None else f"survivors-{self.name}"

    def trim_name(self, target: float | str) -> str:
        """The name of the stage for one target: ``trim-statement-2.0x``, or ``trim-statement-ftkd-12GMACs``."""
        wanted = Target.parse(target)
        trim = self.config.trim
        method = "" if wanted.is_full or trim.method == SMART else f"-{trim.method}"
        return f"trim-{self.title}{method}-{wanted.name}"


def tasks_of(config: RunConfig) -> list[Task]:
    """The tasks of a run, its own first, though that may have no targets; further ones without targets are left out."""
    alone = replace(config, tasks={})
    further = [
        Task(name=name, config=replace(alone, trim=task.trim, evaluate=task.evaluate), vocabulary=task.vocabulary)
        for name, task in config.tasks.items()
        if task.trim.targets
    ]
    return [Task(config=alone), *further]


def training_stages(config: RunConfig) -> list[str]:
    """The names of the stages that write checkpoints."""
    own = ["pretrain"] if config.pretrained is None else []
    return own + [name for task in tasks_of(config) for name in task.trims]
