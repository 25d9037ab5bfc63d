"""A Ray cluster of two machines on this one: two raylets of one CPU each, every port on the loopback."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.ray_backend import _RAY_ENVIRONMENT, _environment

ROOT = Path(__file__).resolve().parents[3]
NAN = "nan"
_STORE_BYTES = 100 * 2**20


class Nodes:
    """The two machines; the second one can go and come back.

    Args:
        folder: Where a fault is asked for, and where the small disk is.
    """

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        session = Path(os.environ["RAY_TMPDIR"]) / "ray"
        session.mkdir()
        self._cluster = Cluster()
        self._cluster.add_node(temp_dir=str(session), include_dashboard=False, **self._arguments())
        self.address = str(self._cluster.address)
        self.folder = folder
        self.disk = folder / "disk"
        self._second: Any = None
        self.add()

    def add(self) -> None:
        """Brings the second machine, if it is away."""
        if self._second is None:
            self._second = self._cluster.add_node(**self._arguments())

    def remove(self) -> None:
        """Kills the second machine's raylet, and with it all that runs there."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    @property
    def has_disk(self) -> bool:
        """Whether the small disk could be mounted."""
        return os.path.ismount(self.disk)

    def close(self) -> None:
        """Ends all."""
        self._cluster.shutdown()

    @staticmethod
    def _arguments() -> dict[str, Any]:
        return {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES}


@contextlib.contextmanager
def _small_disk(disk: Path) -> Iterator[None]:
    """A disk of 400 MB (a run wants 256 free), which takes root to mount; else a folder that is not to be filled."""
    disk.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(disk)]
    mounted = shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """A cluster for the time of a test; call it in the main thread, with which Ray's processes end."""
    variables = {
        "PYTHONPATH": f"{ROOT / 'tests/launch/faulty/hook'}{os.pathsep}{ROOT}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FAULT_NAN": str(folder / NAN),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    variables["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="tf-", dir="/tmp")  # socket paths must be short
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        with _environment(_RAY_ENVIRONMENT), _small_disk(folder / "disk"):
            nodes = Nodes(folder)
            try:
                yield nodes
            finally:
                nodes.close()
    finally:
        shutil.rmtree(variables["RAY_TMPDIR"], ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
