"""Spreads numbered work over a Ray cluster: what `data_prep` is handed for `trimline shard --executor ray`."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.executors import Work
from launch.cluster_config import ClusterConfig
from launch.ray_backend import RayBackend

_AHEAD = 2  # tasks that wait for each CPU
_RETRIES = 3  # of a task whose process or machine is lost; what it writes is the same each time


@contextlib.contextmanager
def ray_executor(address: str | None, workers: int | None) -> Iterator["RayExecutor"]:
    """Joins the cluster at an address, or starts one on this machine; leaves or ends it afterwards.

    Args:
        address: As for `ray.init`; None starts a local cluster.
        workers: CPUs to use at most; by default all that the cluster has.

    Raises:
        UserError: where the address does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="trimline-") as storage:
        backend = RayBackend(ClusterConfig(workers=workers or 1, address=address), Path(storage))
        try:
            backend.start()
            yield RayExecutor(workers)
        finally:
            backend.stop()


class RayExecutor:
    """See `data_prep.executors.Executor`; a Ray session must be there.

    Args:
        workers: CPUs to use at most; by default all that the cluster has.
    """

    in_process = False

    def __init__(self, workers: int | None) -> None:
        self._workers = workers

    def map(self, work: Work, numbers: Iterable[int]) -> Iterator[int]:
        """See `Executor.map`."""
        import ray

        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_work)
        shared, here, waiting = ray.put(work), os.getcwd(), iter(numbers)

        def start(count: int) -> list[Any]:
            return [task.remote([shared], here, number) for number in itertools.islice(waiting, count)]

        running = start(self._slots())
        try:
            while running:
                done, running = ray.wait(running)
                running += start(self._slots() - len(running))  # a cluster may have grown
                yield from ray.get(done)
        except ray.exceptions.RayTaskError as error:
            # Its own text is a traceback.
            raise (as_user_error(error.cause) or error) from None
        except ray.exceptions.RayError as error:
            raise UserError(
                f"a process of the Ray cluster was lost {_RETRIES + 1} times, perhaps for want of memory "
                f"({type(error).__name__}); run the same command again: what is finished is kept"
            ) from error

    def _slots(self) -> int:
        import ray

        return tasks_at_once(int(ray.cluster_resources().get("CPU", 1)), self._workers)


def tasks_at_once(cpus: int, workers: int | None) -> int:
    """How many tasks of one CPU each may be under way: some wait for each CPU, unless that were CPUs not asked for."""
    return max(1, _AHEAD * cpus if workers is None or workers >= cpus else workers)


def as_user_error(cause: BaseException) -> UserError | None:
    """What a user can do about an error on a cluster's machine, where it is a mistake of the user's."""
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, FileNotFoundError):
        return UserError(
            f"a machine of the Ray cluster cannot see {cause.filename}; what is read, the folder to write to and "
            "--cache DIR must lie where all of them can see them"
        )
    return None


_CACHE: dict[str, Work] = {}


def _work(shared: list[Any], folder: str, number: int) -> int:
    """The body of a task; a process unpacks the work once, not with every number."""
    import ray

    name = shared[0].hex()
    if name not in _CACHE:
        os.chdir(folder)  # relative paths mean what they mean to the user
        _CACHE.clear()
        _CACHE[name] = ray.get(shared[0])
    return _CACHE[name](number)
