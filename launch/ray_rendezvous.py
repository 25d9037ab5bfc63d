"""How the workers of a Ray Train job find each other: at a port of the machine's own address, and of no other.

Torch's store listens at every address of a machine where it opens the socket itself, so it is given an open one: on
the loopback for a local cluster, elsewhere on the address that Ray's own ports are on. Found in Ray 2.60, torch 2.15.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch._C._distributed_c10d import PrefixStore, TCPStore

_BACKLOG = 1024
_stores: list[TCPStore] = []  # of the first worker's process; it must live as long as the process


@dataclass
class BoundTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's way to a process group, with a store of ours."""

    @property
    def backend_cls(self) -> Any:
        """See `ray.train.backend.BackendConfig`."""
        return _BoundBackend


class _BoundBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's, but for the beginning."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Opens the store in the first worker's process, and lets all of them meet there."""
        count = len(worker_group)
        host, port = worker_group.execute_single(0, open_store, count, backend_config.timeout_s)
        meet = {"host": host, "port": port, "backend": backend_config.backend, "seconds": backend_config.timeout_s}
        ray.get([worker_group.execute_single_async(rank, join, rank, count, **meet) for rank in range(count)])


def open_store(world_size: int, seconds: float, host: str | None = None) -> tuple[str, int]:
    """In the first worker: the store.

    Args:
        world_size: How many will meet there.
        seconds: Patience of those who wait for something in it.
        host: Where; by default the address that Ray knows this machine by.

    Returns:
        The address and the port.
    """
    host = host or str(ray.util.get_node_ip_address())
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=_BACKLOG) as server:
        port = int(server.getsockname()[1])
        _stores[:] = [
            TCPStore(
                host,
                port,
                world_size,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=seconds),
                master_listen_fd=server.detach(),
            )
        ]
    return host, port


def join(rank: int, world_size: int, host: str, port: int, backend: str, seconds: float) -> None:
    """In every worker: makes the process group, and says to libraries what they look for in the environment."""
    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    patience = timedelta(seconds=seconds)
    store = _stores[0] if rank == 0 else TCPStore(host, port, world_size, is_master=False, timeout=patience)
    dist.init_process_group(
        backend, store=PrefixStore("job", store), rank=rank, world_size=world_size, timeout=patience
    )
