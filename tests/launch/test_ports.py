"""At which addresses a running Ray of ours, and other groups of processes, listen, as the kernel tells it."""

import ipaddress
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch.cluster_config import ClusterConfig
from launch.ray_backend import RayBackend
from launch.torchrun import meet
from pipeline.loopback import listen_on_loopback
from pipeline.process import Process

LISTENS = "0A"
pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel has no /proc/net/tcp")


def sockets() -> Iterator[tuple[str, str, int]]:
    """(inode, address, port) of every socket of this machine that waits for somebody."""
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                address, _, port = fields[1].partition(":")
                yield fields[9], readable(address), int(port, 16)


def readable(address: str) -> str:
    """An address as the kernel writes it: words of 4 bytes in this machine's order."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return str(ipaddress.ip_address(b"".join(struct.pack(f"{order}I", word) for word in words)))


def inodes(pid: int) -> set[str]:
    """Of a process's open sockets."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def listening(pids: Iterable[int]) -> dict[tuple[str, int], int]:
    """(address, port) -> process."""
    owners = {inode: pid for pid in pids for inode in inodes(pid)}
    return {(address, port): owners[inode] for inode, address, port in sockets() if inode in owners}


def is_loopback(address: str) -> bool:
    """Also of IPv4 addresses in the clothes of IPv6."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def rays_processes() -> list[int]:
    """All that were started below this one."""
    return [process.pid for process in psutil.Process().children(recursive=True) if process.is_running()]


def stay(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """A job that is there, with all its ports open, until a file says go."""
    folder = Path(job["folder"])
    dist.barrier()
    write_json(folder / f"here-{process.rank}.json", {"pid": os.getpid(), "port": int(os.environ["MASTER_PORT"])})
    while not (folder / "go").exists():
        time.sleep(0.05)
    return {}


def test_a_socket_of_ones_own_is_found_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine, socket.create_server(("0.0.0.0", 0)) as open_to_all:
        found = listening([os.getpid()])
        assert found[("127.0.0.1", mine.getsockname()[1])] == os.getpid()
        assert found[("0.0.0.0", open_to_all.getsockname()[1])] == os.getpid()
    assert (readable("00000000000000000000000001000000"), readable("0" * 32)) == ("::1", "::")
    told = {"127.0.0.1": True, "::1": True, "::ffff:127.0.0.1": True, "0.0.0.0": False, "::": False, "192.0.2.1": False}
    assert {address: is_loopback(address) for address in told} == told


@pytest.mark.timeout(180)
def test_every_port_of_a_running_ray_and_its_workers_is_on_the_loopback(tmp_path: Path) -> None:
    backend = RayBackend(ClusterConfig(workers=2, cpus_per_worker=0.5), tmp_path / "ray")
    try:
        backend.start()
        stays = {"stage": "stay", "folder": str(tmp_path / "stay"), "function": f"{__name__}:stay"}
        (tmp_path / "stay").mkdir()
        running = threading.Thread(target=backend.launch, args=(stays, 2), daemon=True)
        running.start()
        while len(list(tmp_path.glob("stay/here-*.json"))) < 2:
            assert running.is_alive()
            time.sleep(0.05)
        ports = listening(rays_processes())
        workers = [read_json(path) for path in tmp_path.glob("stay/here-*.json")]
        (tmp_path / "stay" / "go").touch()
        running.join()
    finally:
        backend.stop()
    assert [at for at in ports if not is_loopback(at[0])] == []
    # The store that the workers meet at, what gloo and Ray have opened in them, and Ray's own processes.
    assert {port for _, port in ports} >= {worker["port"] for worker in workers}
    assert set(ports.values()) > {worker["pid"] for worker in workers}


def addresses(argument: str, process: Process) -> list[str]:
    """Where this process listens once its group is met, and the interface that it was told to take."""
    assert dist.get_world_size() == process.world_size
    return [*(address for address, _ in listening([os.getpid()])), os.environ["GLOO_SOCKET_IFNAME"] + argument]


_ONE = """
from pipeline.engine_deepspeed import ensure_process_group
from pipeline.process import Process
from tests.launch.test_ports import addresses
ensure_process_group(Process())
print(*addresses("", Process()))
"""
_SEVERAL = """
from launch.local_processes import run_processes
from pipeline.process import Process
from tests.launch.test_ports import addresses
if __name__ == "__main__":
    print(*run_processes(addresses, ("",), [Process(rank=rank, world_size=2, local_rank=rank) for rank in range(2)]))
"""


@pytest.mark.parametrize("script", [_ONE, _SEVERAL])
def test_a_group_without_ray_has_its_ports_on_the_loopback(script: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *found, interface = done.stdout.split()
    assert found and all(map(is_loopback, found))
    assert interface == "lo"


@pytest.mark.parametrize(("there", "wanted"), [("2", ["lo", "lo"]), ("1", [None, None])])
def test_torchruns_processes_listen_on_the_loopback_where_all_are_here(
    there: str, wanted: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", there)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="cannot meet"):
        meet()
    assert [os.environ.get(name) for name in names] == wanted


def test_the_interface_that_the_user_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    listen_on_loopback()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "lo")
