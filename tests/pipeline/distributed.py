"""Runs a function in several processes that form a gloo group, for tests.

    losses = run_ranks(train, 2, ExampleConfig())     # train(process, ExampleConfig()) on ranks 0 and 1

The processes start once (importing torch takes seconds) and serve all later calls with as many ranks. They meet in
a file, not at a port. After a failure or at the time limit they are killed, and others start later.
"""

import atexit
import multiprocessing as mp
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")

_START_SECONDS = 90.0
_DIED = ("Died", "the process died")


class RankError(AssertionError):
    """Ranks failed: `causes` names each one's exception type, the message has their tracebacks."""

    def __init__(self, causes: dict[int, tuple[str, str]]) -> None:
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, (_, text) in sorted(causes.items())))
        self.causes = {rank: name for rank, (name, _) in causes.items()}


class RankPool:
    """`world_size` processes in one gloo group; `idle` while none of them is busy, stuck or dead.

    Args:
        world_size: How many.
        context: How they are started; `preloaded` for many pools one after the other.
    """

    def __init__(self, world_size: int, context: BaseContext | None = None) -> None:
        context = context or mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks_")
        self.idle = False
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            store = os.path.join(self._folder.name, "store")
            process = context.Process(target=_serve, args=(rank, world_size, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.collect(_START_SECONDS)

    def send(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Starts the function on every rank."""
        self.idle = False
        for pipe in self.pipes:
            pipe.send((function, args))

    def collect(self, timeout: float) -> list[Any]:
        """Every rank's result.

        Raises:
            RankError: A rank raised or died. The others get a moment to say what happened to them.
            TimeoutError: Not all were done in time.
        """
        results: dict[int, Any] = {}
        failures: dict[int, tuple[str, str]] = {}
        deadline = time.monotonic() + timeout
        while len(results) + len(failures) < len(self.pipes):
            left = {p: rank for rank, p in enumerate(self.pipes) if rank not in results and rank not in failures}
            ready = wait(list(left), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                kind, value = _receive(pipe)
                (results if kind == "result" else failures)[left[pipe]] = value
            if failures:
                deadline = min(deadline, time.monotonic() + 5.0)
        self.idle = len(results) + len(failures) == len(self.pipes) and _DIED not in failures.values()
        if failures:
            raise RankError(failures)
        if len(results) < len(self.pipes):
            missing = sorted(set(range(len(self.pipes))) - set(results))
            raise TimeoutError(f"ranks {missing} were not done after {timeout} s")
        return [results[rank] for rank in range(len(self.pipes))]

    def kill(self) -> None:
        """Ends the processes at once."""
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self._folder.cleanup()


def preloaded(*modules: str) -> BaseContext:
    """Processes that begin with these modules imported: they start in tenths of a second."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks at it when it is imported
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "deepspeed", *modules])
    return context


def _receive(pipe: Connection) -> tuple[str, Any]:
    try:
        kind, value = pipe.recv()
        return kind, value
    except (EOFError, OSError):
        return "failure", _DIED


_pools: dict[int, RankPool] = {}


def run_ranks(function: Callable[..., T], world_size: int, *args: object, timeout: float = 60.0) -> list[T]:
    """Calls `function(process, *args)` on every rank and returns the results in the order of ranks.

    Args:
        function: Defined at the top of a module, as it is sent by name. It gets the rank's `Process` first.
        world_size: How many processes.
        args: Further arguments; they and the results must be picklable.
        timeout: Seconds for the call, without starting the processes.

    Raises:
        RankError: A rank raised.
        TimeoutError: The time is over.
    """
    if world_size not in _pools:
        _pools[world_size] = RankPool(world_size)
    pool = _pools[world_size]
    try:
        pool.send(function, args)
        return pool.collect(timeout)
    finally:
        if not pool.idle:
            _pools.pop(world_size).kill()


@atexit.register
def _kill_all() -> None:
    while _pools:
        _pools.popitem()[1].kill()


def _serve(rank: int, world_size: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    from pipeline.process import Process

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    process = Process(rank=rank, world_size=world_size, local_rank=rank)
    pipe.send(("result", None))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("result", function(process, *args)))
        except Exception as error:
            pipe.send(("failure", (type(error).__name__, "".join(traceback.format_exception(error)))))
