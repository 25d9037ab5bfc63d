"""What becomes of an update whose loss or gradient is not a number, on whichever process."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from data_prep.errors import UserError
from pipeline.engine import NonFiniteError

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


class Rewind(Exception):
    """Training is to go back to its last checkpoint."""


class BadUpdates:
    """Decides; the same on every process, as each of them is told of the same failures.

    Args:
        config: What is wanted.
    """

    def __init__(self, config: BadUpdateConfig) -> None:
        self.config = config
        self.left_out = 0
        self._in_a_row = 0
        self._rewinds = 0
        self._failures: Counter[int] = Counter()

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
                f"step {step}: {error}; no weight has changed. Lower the learning rate, or set loop.bad_updates.action "
                "to skip or rewind"
            ) from error
        if self.config.action == "rewind" and first and can_rewind:
            self._rewinds += 1
            self._check(self._rewinds, "rewound", step, error)
            log.warning("step %d: %s; going back to the last checkpoint", step, error)
            raise Rewind from error
        self._in_a_row += 1
        self._check(self._in_a_row, "left out in a row", step, error)
        self.left_out += 1
        log.warning("step %d: %s; its update is left out", step, error)

    def _check(self, count: int, what: str, step: int, error: NonFiniteError) -> None:
        if count > self.config.limit:
            raise NonFiniteError(
                f"step {step}: {error}; {self.config.limit} updates were {what} before (loop.bad_updates.limit)"
            ) from error
