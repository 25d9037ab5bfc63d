"""Where the workers of a Ray job meet."""

from datetime import timedelta

import psutil
import pytest
from torch._C._distributed_c10d import TCPStore

from launch import ray_rendezvous
from launch.ray_rendezvous import open_store


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_store_listens_at_the_given_address_only_and_serves_there(host: str) -> None:
    def listening() -> set[tuple[str, int]]:
        return {tuple(c.laddr) for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}

    before = listening()
    found, port = open_store(2, 20.0, host)
    try:
        assert (found, listening() - before) == (host, {(host, port)})
        other = TCPStore(host, port, 2, is_master=False, timeout=timedelta(seconds=20))
        other.set("word", "heard")
        assert ray_rendezvous._stores[0].get("word") == b"heard"
    finally:
        ray_rendezvous._stores.clear()
