"""How long a training lasts, and how often what belongs to it is done."""

from dataclasses import dataclass, field

from pipeline.bad_updates import BadUpdateConfig
from pipeline.clock import ScheduleConfig
from pipeline.limits import at_least
from pipeline.measure.noise_scale import NoiseScaleConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how often.

    Attributes:
        samples: Samples to train on, counting repeats; rounded up to whole steps.
        global_batch: Samples of a step over all processes and all parts whose gradients are accumulated.
        schedule: Learning rate over training.
        checkpoint_seconds: Time between checkpoints.
        log_every: Steps between lines of metrics.jsonl.
        bad_updates: What is done where a loss or gradient is not a number.
        noise_scale: How often the gradient noise scale is measured, where there are several processes or parts.
    """

    samples: int
    global_batch: int
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint_seconds: float = 60.0
    log_every: int = 10
    bad_updates: BadUpdateConfig = field(default_factory=BadUpdateConfig)
    noise_scale: NoiseScaleConfig = field(default_factory=NoiseScaleConfig)

    def __post_init__(self) -> None:
        at_least(self, "loop", 1, "samples", "global_batch", "log_every")
        at_least(self, "loop", 0, "checkpoint_seconds")

    @property
    def steps(self) -> int:
        """Steps of a whole training."""
        return -(-self.samples // self.global_batch)


UPKEEP_KEYS = frozenset({"checkpoint_seconds", "log_every", "bad_updates", "noise_scale"})
"""What a training saves, tells and measures on its way, and what it does with an update that is no number."""
