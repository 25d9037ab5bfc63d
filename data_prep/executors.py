"""Who does the pieces of a job: this process, several of this machine, or whatever a caller hands in."""

import concurrent.futures as futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from data_prep.errors import UserError
from data_prep.parallel import spawned_pool

Work = Callable[[int], int]
# Waiting for each worker beside what it does; more would only be held in memory.
_AHEAD = 2


class Executor(Protocol):
    """Does numbered pieces of work somewhere."""

    @property
    def in_process(self) -> bool:
        """Whether all is done in this very process, so that its memory can be the target."""
        ...

    def map(self, work: Work, numbers: Iterable[int]) -> Iterator[int]:
        """Does `work(number)` for every number, in any order, and gives the results as they come.

        `work` is picklable and may be large: it should travel once to each process, not with each number.

        Raises:
            UserError: what the work raises for a full disk and the like.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """One piece after the other, here."""

    in_process: bool = True

    def map(self, work: Work, numbers: Iterable[int]) -> Iterator[int]:
        """See `Executor.map`."""
        return map(work, numbers)


@dataclass(frozen=True)
class Processes:
    """Several processes of this machine; they end when this one is killed."""

    workers: int
    in_process: bool = False

    def map(self, work: Work, numbers: Iterable[int]) -> Iterator[int]:
        """See `Executor.map`."""
        pool = spawned_pool(self.workers, _take, work)
        waiting = iter(numbers)
        try:
            running = {pool.submit(_work, n) for n in itertools.islice(waiting, _AHEAD * self.workers)}
            while running:
                done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                running |= {pool.submit(_work, n) for n in itertools.islice(waiting, len(done))}
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise UserError(
                "a writing process was killed, perhaps for want of memory; run the same command again, with fewer "
                "--workers if it happens again: what is finished is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def local_executor(workers: int) -> Executor:
    """As many processes as asked for; for one none is started."""
    return Processes(workers) if workers > 1 else InProcess()


_WORKS: list[Any] = []


def _take(work: Work) -> None:
    _WORKS.append(work)


def _work(number: int) -> int:
    result: int = _WORKS[0](number)
    return result
