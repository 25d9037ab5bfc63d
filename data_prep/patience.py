"""Tries again what may pass (a stall, a dropped connection, a busy server), within limits of time."""

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from data_prep.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_WORTH_TELLING = 4  # attempts that fail: not a mishap any more
_SLOWEST = 50_000  # bytes a second; a connection below it is given up for another one
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_dice = random.SystemRandom()  # neither shared after a fork nor part of anybody's seed


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait.

    Attributes:
        stall_seconds: Time without a byte after which an attempt is given up.
        give_up_seconds: Time for one read with all its attempts.
    """

    stall_seconds: float = 20.0
    give_up_seconds: float = 300.0


class Passing(Exception):
    """A failure that may pass; the message says what happened, in one line."""

    def __init__(self, what: str, *, tries: int | None = None, pause: float = 0.0) -> None:
        """Keeps how it may be met.

        Args:
            what: What happened.
            tries: Such attempts after which it is believed; None for as many as there is time for.
            pause: Seconds that the other side asks for.
        """
        super().__init__(what)
        self.tries = tries
        self.pause = pause


def patiently(
    what: str,
    attempt: Callable[[float], T],
    patience: Patience,
    size: Callable[[], int],
    on_failure: Callable[[Passing], None] | None = None,
) -> T:
    """Calls `attempt` until it succeeds, with growing pauses that differ by chance.

    Args:
        what: What is read, for the message.
        attempt: Is given the time (of `time.monotonic`) at which it is abandoned; raises `Passing` for what may pass.
        patience: The limits.
        size: Says how many bytes are asked for; many may take longer.
        on_failure: Is told each failed attempt.

    Raises:
        UserError: it never succeeded, or `attempt` raised one.
    """
    begun, tries, believed, pause = time.monotonic(), 0, 0, _FIRST_PAUSE
    end = begun + patience.give_up_seconds
    while True:
        tries += 1
        limit = min(end - time.monotonic(), patience.stall_seconds + size() / _SLOWEST)
        try:
            return _within(limit, attempt)
        except Passing as error:
            failure = error
        if on_failure is not None:
            on_failure(failure)
        if tries == _WORTH_TELLING:
            logger.warning(
                "%s: %s, for the %dth time; trying on for %.0f s", what, failure, tries, end - time.monotonic()
            )
        wait = max(pause * _dice.uniform(0.5, 1.5), min(failure.pause, 60.0))
        believed += failure.tries is not None
        if believed == failure.tries or time.monotonic() + wait >= end:
            raise UserError(
                f"{what} cannot be read: {failure} ({tries} attempts in {time.monotonic() - begun:.0f} s); check the "
                "address, your access and the network; a run that is started again goes on where it stopped"
            ) from failure
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _within(seconds: float, attempt: Callable[[float], T]) -> T:
    """The result of `attempt`, which a thread carries out that may be left behind: not every library has limits."""
    deadline = time.monotonic() + seconds
    outcome: Future[T] = Future()
    threading.Thread(target=settle, args=(outcome, lambda: attempt(deadline)), daemon=True).start()
    try:
        return outcome.result(timeout=max(0.0, seconds))
    except TimeoutError as error:
        if outcome.done():
            raise  # it is the attempt's own
        raise Passing(f"no answer within {seconds:.0f} s") from error


def settle(outcome: "Future[T]", call: Callable[[], T]) -> None:
    """Puts what a call gives or raises into a future; for threads of one's own."""
    try:
        outcome.set_result(call())
    except BaseException as error:
        outcome.set_exception(error)
