"""What becomes of an update whose loss or gradient is not a number, on whichever process."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import UserError
from pipeline.engine import NonFiniteError
from pipeline.progress import BAD_UPDATES, MetricsLog

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BadUpdateConfig:
    """What is done where the loss or the gradient of any process is NaN or infinite.

    No weight has changed then, on any of them.

    Attributes:
        action: ``stop`` ends the run; ``skip`` goes on with the next batch; ``rewind`` goes back to the last checkpoint
            and does its way again, and leaves the update out where it fails a second time: a fault of a machine is
            mended, a bad batch is passed over.
        limit: Updates in a row that may fail, and updates that may be rewound; one more ends the run.
    """

    action: Literal["stop", "skip", "rewind"] = "stop"
    limit: int = 5

    def __post_init__(self) -> None:
        if self.action not in ("stop", "skip", "rewind"):
            raise UserError(f"loop.bad_updates.action={self.action!r} is not known; give stop, skip or rewind")
        if self.limit < 1:
            raise UserError(f"loop.bad_updates.limit={self.limit} must be at least 1")


_BACK_TO = "back_to"


class Rewind(Exception):
    """Training is to go back to its last checkpoint."""


class BadUpdates:
    """Decides; the same on every process, as each of them is told of the same failures.

    Each one is a line of bad_updates.jsonl, so that who looks at a training that is not over can count them: its
    "step" (which update), when it was "detected", "why", and "back_to", the step of the checkpoint that training went
    back to, where it did. Lines of left out updates number `left_out`; those of rewinds stay whatever comes later.

    Args:
        config: What is wanted.
        folder: Of the stage, on the one process that writes there.
    """

    def __init__(self, config: BadUpdateConfig, folder: Path | None = None) -> None:
        self.config = config
        self.left_out = 0
        self._path = None if folder is None else folder / BAD_UPDATES
        self._log: MetricsLog | None = None
        self._rewinding: dict[str, Any] | None = None
        self._in_a_row = 0
        self._rewinds = 0
        self._failures: Counter[int] = Counter()

    def go_on(self, step: int, left_out: int) -> None:
        """Is told from where training goes on: its beginning or a checkpoint, after a restart or a rewind.

        Args:
            step: Steps done.
            left_out: Updates among them that were left out.
        """
        self.left_out = left_out
        if self._path is not None and self._path.exists():  # updates that are done again are judged again
            self._log = MetricsLog(self._path, step, lasting=_BACK_TO)
        if self._rewinding is not None:
            self._note({**self._rewinding, _BACK_TO: step})
            self._rewinding = None

    def good(self) -> None:
        """Is told of an update that succeeded."""
        self._in_a_row = 0

    def bad(self, step: int, error: NonFiniteError, can_rewind: bool) -> None:
        """Is told of one that failed, and returns where it is to be left out.

        Args:
            step: Steps done before it.
            error: Why.
            can_rewind: Whether there is a checkpoint.

        Raises:
            NonFiniteError: The run is to end.
            Rewind: It is to be tried again.
        """
        self._failures[step] += 1
        first = self._failures[step] == 1
        if self.config.action == "stop":
            raise NonFiniteError(
                f"step {step}: {error}; no weight has changed. Go on with loop.bad_updates.action set to skip or "
                "rewind, or start over with a lower learning rate"
            ) from error
        if self.config.action == "rewind" and first and can_rewind:
            self._rewinds += 1
            self._check(self._rewinds, "rewound", step, error)
            log.warning("step %d: %s; going back to the last checkpoint", step, error)
            self._rewinding = _line(step, error)
            raise Rewind from error
        self._in_a_row += 1
        self._check(self._in_a_row, "left out in a row", step, error)
        self.left_out += 1
        self._note(_line(step, error))
        log.warning("step %d: %s; its update is left out", step, error)

    def _note(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        if self._log is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._log = MetricsLog(self._path, 0)
        self._log.write(line)

    def _check(self, count: int, what: str, step: int, error: NonFiniteError) -> None:
        if count > self.config.limit:
            raise NonFiniteError(
                f"step {step}: {error}; {self.config.limit} updates were {what} before (loop.bad_updates.limit)"
            ) from error


def _line(step: int, error: NonFiniteError) -> dict[str, Any]:
    """What is written of an update that failed after `step` others."""
    return {"step": step + 1, "detected": datetime.now(UTC).isoformat(timespec="seconds"), "why": str(error)}
