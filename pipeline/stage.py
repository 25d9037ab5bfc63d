"""Where a training lives, what bounds it, and whom it tells."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.checkpoint_rules import CheckpointConfig, Guard
from pipeline.data.batch import ImageTextBatch
from pipeline.lease import check_lease
from pipeline.process import Process
from pipeline.pulse import Pulse
from pipeline.tracking import Tracker

CHECKPOINT = "checkpoint.json"

Between = Callable[[Iterable[ImageTextBatch]], Iterable[ImageTextBatch]]
"""What all batches pass on their way from the loader to the loop: there a bench holds the loop, and takes the time."""

Batches = Callable[[int, int], Iterable[ImageTextBatch]]
"""(first step, end) -> the batches of these steps."""


@dataclass(frozen=True)
class Stage:
    """Where a training lives and what bounds it.

    Attributes:
        folder: Of the stage in the run folder.
        process: This process.
        budget_seconds: Time after which it ends; None for no bound.
        checkpoint: Where its checkpoints go, and which of them stay.
        fingerprint: Of all that its result depends on: it goes on from checkpoints with the same one only.
        tracker: Is given the numbers of metrics.jsonl too.
        pulse: Is told of each step, and says when training is to leave.
        lease: Session of the run that holds the place of the checkpoints (see `pipeline.lease`); None where no other
            run can know that place.
        silent_seconds: Time without a sign of another process after which it counts as lost while a checkpoint is
            written; 0 for torch's own half hour.
        between: Stands between loader and loop.
    """

    folder: Path
    process: Process
    budget_seconds: float | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fingerprint: str = ""
    tracker: Tracker = field(default_factory=Tracker)
    pulse: Pulse = field(default_factory=Pulse)
    lease: str | None = None
    silent_seconds: float = 0.0
    between: Between = iter

    @property
    def checkpoints(self) -> Path | str:
        """The folder or URL of its checkpoints."""
        return self.checkpoint.place_of(self.folder)

    @property
    def checkpoint_note(self) -> Path | None:
        """The file that says where the newest checkpoint lies, where that is not in the folder."""
        return None if self.checkpoint.path is None else self.folder / CHECKPOINT

    @property
    def guard(self) -> Guard:
        """What the store of its checkpoints asks and tells."""
        path, lease = self.checkpoint.path, self.lease
        check = Guard().check if path is None or lease is None else partial(check_lease, path, lease)
        return Guard(check=check, silent_seconds=self.silent_seconds, on_loss=self.pulse.lost)
