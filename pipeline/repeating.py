"""Work that a thread does again and again beside the main one: signs of life, watches, limits."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Repeating:
    """A daemon thread that does something, waits, and does it again, until it is stopped.

    An error of the work's ends it, and is logged at that moment with its traceback, whoever else still runs.

    Args:
        work: What is done; it waits before the first time too.
        seconds: The wait.
        name: Of the thread, in logs.
    """

    def __init__(self, work: Callable[[], object], seconds: float, name: str) -> None:
        self._work = work
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        """Begins; once only."""
        self._thread.start()

    def stop(self) -> None:
        """Lets it end, after what it does now; from any thread, its own as well."""
        self._over.set()

    def close(self, wait_seconds: float | None = None) -> None:
        """Stops it and waits for its end, where it was started at all.

        Args:
            wait_seconds: At most; None for as long as its work takes.
        """
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(wait_seconds)

    def _repeat(self) -> None:
        try:
            while not self._over.wait(self._seconds):
                self._work()
        except Exception as error:  # there is nobody above this thread whom it could reach
            log.exception("the thread %r ended: %s: %s", self._thread.name, type(error).__name__, error)
