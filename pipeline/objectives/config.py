"""The constants of the losses."""

from dataclasses import dataclass
from typing import Literal

from pipeline.limits import a_share, at_least


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Constants of the losses; each backbone reads those of the losses it has.

    Attributes:
        queue: Length of the feature queue (ALBEF, BLIP).
        queue_start: Share of training from which the queue serves as keys. Features that change fast at first are told
            from older ones by their age alone, and nothing is learned (SwAV's queue starts late for the same reason).
        momentum: μ of the momentum tower (ALBEF, BLIP).
        alpha: Weight of the momentum model's soft labels (ALBEF, BLIP).
        alpha_ramp: Share of training over which `alpha` rises from 0 (ALBEF: its first epoch).
        mask_share: Probability that a word is masked (ALBEF, METER).
        negatives: Whether matching draws its negatives from this process's part of the batch (``local``, as the
            references do) or from the whole batch (``global``: the same draws on any number of processes).
        temperature_lr: Learning rate of the temperature over the model's; small models train at high rates, at which
            the temperature would run ahead of the features.
        contrast_chunk: Rows of the contrast's scores that are held at a time; the result does not depend on it.
        contrast_cache: Whether contrast is among the whole update where it is encoded in parts (`engine.micro_batch`):
            each part is encoded twice for it (`pipeline.tasks.contrasting`; ALBEF, BLIP, CLIP).
    """

    queue: int = 65536
    queue_start: float = 0.0
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp: float = 1 / 30
    mask_share: float = 0.15
    negatives: Literal["local", "global"] = "local"
    temperature_lr: float = 1.0
    contrast_chunk: int = 1024
    contrast_cache: bool = False

    def __post_init__(self) -> None:
        at_least(self, "objectives", 0, "queue", "temperature_lr")
        at_least(self, "objectives", 1, "contrast_chunk")
        a_share(self, "objectives", "queue_start", "momentum", "alpha", "alpha_ramp", "mask_share")
