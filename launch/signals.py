"""What Ctrl-C and SIGTERM do to a command that has started others."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stopped_by_sigterm(ask: Callable[[], bool] = lambda: False, notice_seconds: float = 0.0) -> Iterator[None]:
    """Lets SIGTERM stop a run as Ctrl-C does, after a notice: whatever is asked may end in order first.

    Args:
        ask: Asks whatever runs to save and leave; says whether there is anything that will.
        notice_seconds: How long it has for that; a second SIGTERM, or Ctrl-C, ends it at once.
    """
    noticed = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if noticed.is_set() or not notice_seconds or not ask():
            raise KeyboardInterrupt
        noticed.set()
        timer.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(notice_seconds, os.kill, [os.getpid(), signal.SIGTERM])
    timer.daemon = True
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM off while processes are being stopped, which takes a second or two."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
