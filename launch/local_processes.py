"""A function in several processes of this machine that form a gloo group; torchrun is not needed.

They meet in a file, and gloo's ports are on the loopback, so that nobody else can reach them.
"""

import multiprocessing as mp
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from data_prep.errors import UserError
from pipeline.loopback import listen_on_loopback
from pipeline.process import Process
from pipeline.together import RankFailedError

_DONE, _REFUSED, _DIED, _FAILED = "done", "refused", "died", "failed"
_LAST_WORDS_SECONDS = 5.0


def run_processes(function: Callable[..., Any], arguments: tuple[Any, ...], processes: list[Process]) -> Any:
    """Calls ``function(*arguments, process)`` in each of these processes; returns what rank 0 returns.

    Args:
        function: Of a module, for it is sent by name.
        arguments: Picklable.
        processes: All ranks, in order.

    Raises:
        UserError: A rank raised one.
        RankFailedError: A rank raised something else, or died.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="trimline-") as folder:
        pipes: list[Connection] = []
        started: list[BaseProcess] = []
        try:
            for process in processes:
                ours, theirs = context.Pipe(duplex=False)
                job = (function, arguments, process, os.path.join(folder, "store"), _threads(len(processes)), theirs)
                child: BaseProcess = context.Process(target=_serve, args=job, daemon=True)
                child.start()
                theirs.close()
                pipes.append(ours)
                started.append(child)
            return _results(pipes)[0]
        finally:
            for child in started:
                child.kill()
                child.join()
            for pipe in pipes:
                pipe.close()


def _threads(count: int) -> int:
    import torch

    return max(1, torch.get_num_threads() // count)


def _results(pipes: list[Connection]) -> list[Any]:
    """What each rank returned; after the first failure the others have a moment to say what befell them."""
    said: dict[int, tuple[str, Any]] = {}
    while len(said) < len(pipes):
        failed = any(kind != _DONE for kind, _ in said.values())
        left = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in said}
        ready = wait(list(left), _LAST_WORDS_SECONDS if failed else None)
        if not ready:
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                said[left[pipe]] = pipe.recv()
            except EOFError:
                said[left[pipe]] = (_DIED, "the process ended without a word; it may have run out of memory")
    # Where one ends, those that wait for it fail too, and say less about why.
    for wanted in (_REFUSED, _DIED, _FAILED):
        for rank, (kind, text) in sorted(said.items()):
            if kind == wanted:
                raise UserError(text) if kind == _REFUSED else RankFailedError(f"rank {rank}: {text}")
    return [said[rank][1] for rank in range(len(pipes))]


def _serve(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    process: Process,
    store: str,
    threads: int,
    pipe: Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    torch.set_num_threads(threads)
    listen_on_loopback()
    size = process.world_size
    dist.init_process_group("gloo", store=FileStore(store, size), rank=process.rank, world_size=size)
    try:
        pipe.send((_DONE, function(*arguments, process)))
    except UserError as error:
        pipe.send((_REFUSED, str(error)))
    except Exception as error:
        pipe.send((_FAILED, "".join(traceback.format_exception(error))))
