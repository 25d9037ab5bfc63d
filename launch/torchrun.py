"""The processes that torchrun has started: which one this is, and where they meet."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from data_prep.errors import UserError
from pipeline.loopback import listen_on_loopback
from pipeline.process import Process

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def process_of(gpu: bool, environment: Mapping[str, str] = os.environ) -> Process:
    """This process among those of torchrun's; one alone where its variables are not set.

    Args:
        gpu: Whether each has a GPU of its own.
        environment: torchrun's variables.

    Raises:
        UserError: A variable is no number.
    """
    rank, world_size, local_rank = (
        _number(environment, name, start) for name, start in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Process(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=f"cuda:{local_rank}" if gpu else "cpu",
    )


def meet() -> tuple[Store, int, int]:
    """Joins the others where torchrun's variables say; returns the store, this process's rank, and their number.

    Where all of them are on this machine, the ports of their groups are on its loopback.

    Raises:
        UserError: A variable is missing, the port is somebody else's, or the others do not come.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        listen_on_loopback()
    try:
        return next(iter(rendezvous("env://")))
    except (ValueError, dist.DistError) as error:
        where = " ".join(f"{name}={os.environ.get(name)}" for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes of {where} cannot meet ({' '.join(str(error).split())[:200]}); start them with torchrun "
            "--standalone, or with a free port: torchrun --master-port PORT"
        ) from error


def run_here(function: Callable[..., Any], arguments: tuple[Any, ...], process: Process) -> Any:
    """Calls ``function(*arguments, process)`` in this process, once all of torchrun's are in one gloo group.

    Raises:
        UserError: They cannot meet.
    """
    store, rank, world_size = meet()
    # Torchrun's store outlives processes that it starts again.
    store = PrefixStore(f"here/{os.environ.get(_RESTARTS, '0')}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        return function(*arguments, process)
    finally:
        dist.destroy_process_group()


def _number(environment: Mapping[str, str], name: str, start: int) -> int:
    text = environment.get(name, str(start))
    if not text.isdecimal() or int(text) < start:
        raise UserError(f"{name}={text} must be a number of at least {start}; torchrun sets it, else leave it out")
    return int(text)
