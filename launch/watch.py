"""Looks after the workers of a job from outside: ends those that fall silent, and sees when there could be more."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.pulse import LEAVE, read_pulses
from pipeline.repeating import Repeating

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_GAP_SECONDS = 5.0
_GROWTH_SECONDS = 5.0
_TELL_SECONDS = 60.0


class Watch:
    """A thread that reads the signs of life in a stage's folder while it is open as a context manager.

    Args:
        folder: Of the stage.
        silent_seconds: Time without a new sign after which a process is ended; 0 for never.
        end: Ends the process that gave a sign; says whether it did.
        could_grow: Whether the job could go on with more workers: then it is asked to leave with a checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        silent_seconds: float,
        end: Callable[[Mapping[str, Any]], bool],
        could_grow: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._silent_seconds = silent_seconds
        self._end = end
        self._could_grow = could_grow
        self._seen: dict[int, tuple[Mapping[str, Any], float]] = {}
        self._ended: list[int] = []
        self._told: dict[str, float] = {}
        self._looked = self._asked = 0.0
        self._watching = Repeating(self._watch, _LOOK_SECONDS, "watch")

    def __enter__(self) -> "Watch":
        self._looked = self._asked = time.monotonic()
        self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.close(_GAP_SECONDS)

    @property
    def why(self) -> str | None:
        """Which processes were ended here, and why, in words."""
        if not self._ended:
            return None
        numbers = ", ".join(map(str, sorted(self._ended)))
        workers = f"worker{'s' if len(self._ended) > 1 else ''} {numbers}"
        return f"{workers} stuck (no sign of life for {self._silent_seconds:g} s)"

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._looked > _GAP_SECONDS:
            self._seen.clear()  # it was we who could not look, as where the file system hung
        self._looked = now
        self._look(now)
        if now - self._asked > _GROWTH_SECONDS:
            self._asked = now
            self._ask_to_leave()

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Lets a look fail, as where a file system or Ray does not answer for a moment: the next one may succeed."""
        try:
            yield
        except Exception as error:
            now = time.monotonic()
            if now - self._told.get(what, -math.inf) > _TELL_SECONDS:
                self._told[what] = now
                log.warning("%s: %s failed; trying again: %s", self._folder.name, what, error, exc_info=error)

    def _look(self, now: float) -> None:
        if self._silent_seconds:
            with self._surviving("the look for workers that fell silent"):
                self._end_silent(now)

    def _end_silent(self, now: float) -> None:
        try:
            pulses = read_pulses(self._folder)
        except OSError:
            self._seen.clear()  # for as long as nothing can be seen, nobody counts as silent
            raise
        self._seen = {rank: seen for rank, seen in self._seen.items() if rank in pulses}
        for rank, pulse in pulses.items():
            before = self._seen.get(rank)
            if before is None or before[0] != pulse:
                self._seen[rank] = pulse, now
            elif now - before[1] > self._silent_seconds and rank not in self._ended and self._end(pulse):
                self._ended.append(rank)

    def _ask_to_leave(self) -> None:
        with self._surviving("the look for room for more workers"):
            self._ask_where_it_could_grow()

    def _ask_where_it_could_grow(self) -> None:
        pulses = read_pulses(self._folder).values()
        if not pulses or any(pulse["step"] is None for pulse in pulses):
            return  # a start that leads to no step would be for nothing
        if not (self._folder / LEAVE).exists() and self._could_grow():
            log.info("%s could have more workers; it is to leave at a checkpoint", self._folder.name)
            (self._folder / LEAVE).touch()
