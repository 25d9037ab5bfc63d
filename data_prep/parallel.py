"""Processes of this machine that do parts of a job, and end with the process that started them."""

import concurrent.futures as futures
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from data_prep.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_WAITING = 2


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_order(function: Callable[[T], R], things: Iterable[T], workers: int) -> Iterator[R]:
    """Gives function(thing) for each thing, in their order, computed by so many processes.

    Args:
        function: Of a module, or a `functools.partial` of one: it is pickled.
        things: Are taken as they are needed, so that there may be any number of them.
        workers: Processes; 1 computes in this one.

    Raises:
        UserError: where a process is killed, most likely for want of memory.
        Exception: whatever the function raises.
    """
    if workers <= 1:
        yield from map(function, things)
        return
    pool = spawned_pool(workers)
    waiting = deque[futures.Future[R]]()
    try:
        for thing in things:
            waiting.append(pool.submit(function, thing))
            if len(waiting) >= _WAITING * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except futures.BrokenExecutor as error:
        raise UserError(
            f"one of {workers} worker processes was killed, perhaps for want of memory; use fewer with --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def spawned_pool(workers: int, setup: Callable[..., None] | None = None, *given: Any) -> futures.ProcessPoolExecutor:
    """A pool whose processes leave Ctrl-C to this one and end when this one is killed.

    Args:
        workers: Processes.
        setup: Is called in each of them first, with `given`.
        given: Travels once to each process.
    """
    # spawn: a forked child of a process that runs threads (torch, Ray, a progress bar) may hang.
    context = multiprocessing.get_context("spawn")
    return futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(setup, *given))


def _start(setup: Callable[..., None] | None, *given: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if setup is not None:
        setup(*given)


def _die_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
