"""Runs on two real Ray machines, each with a fault, come to the end of one without; see tests/launch/faulty."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from data_prep.errors import UserError
from launch.cluster_config import ClusterConfig
from launch.ray_backend import RayBackend
from launch.ray_machines import Machines, end_process
from pipeline.process import Process
from pipeline.pulse import born
from tests.launch.faulty.bench import Run, disturbed, undisturbed
from tests.launch.faulty.faults import FAULTS
from tests.launch.faulty.judge import over
from tests.launch.faulty.nodes import Nodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with two_nodes(tmp_path_factory.mktemp("faults")) as there:
        yield there


PLACEMENTS: tuple[Literal["pack", "spread", "strict_pack", "strict_spread"], ...]
PLACEMENTS = ("pack", "spread", "strict_pack", "strict_spread")


@pytest.fixture(scope="module")
def reference(nodes: Nodes) -> Run:
    return undisturbed(nodes, nodes.folder / "undisturbed")


@pytest.mark.parametrize("kind", list(FAULTS))
def test_a_run_with_a_fault_comes_to_the_undisturbed_ones_end(kind: str, nodes: Nodes, reference: Run) -> None:
    if FAULTS[kind].fills_disk and not nodes.has_disk:
        pytest.skip("no small disk can be mounted here, and the machine's own is not to be filled")
    row = disturbed(nodes, nodes.folder / kind, kind, 7, reference)
    assert over(row) == [], row


def test_machines_that_are_gone_have_no_room_and_processes_are_ended_where_they_are(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes.add()
    config = ClusterConfig(workers=2, address=nodes.address, wait_seconds=0)
    backend = RayBackend(config, tmp_path)
    try:
        backend.start()
        assert backend.available([1, 2]) == 2
        halves = {name: Machines(ClusterConfig(cpus_per_worker=0.5, placement=name)).room() for name in PLACEMENTS}
        assert halves == {"pack": 4, "spread": 4, "strict_pack": 2, "strict_spread": 2}
        sleeping = subprocess.Popen(["sleep", "100"])
        pulse = {"host": socket.gethostname(), "pid": sleeping.pid, "born": born(sleeping.pid)}
        monkeypatch.setattr("launch.ray_machines.socket.gethostname", lambda: "another")
        assert not end_process({**pulse, "born": 1})  # its number is another's by now
        assert end_process(pulse) and sleeping.wait(20) == -9
        assert not end_process({**pulse, "host": "gone"})
        began = time.monotonic()
        nodes.remove()
        assert Machines(config).room() == 1
        assert time.monotonic() - began < 15
        assert backend.available([1, 2]) == 1
        assert asked() == []
        assert backend.could_have([2], 1)  # for whoever has one, and there is another one
        assert not backend.could_have([3], 1)
        assert asked() == [{"CPU": 1.0}] * 3  # a cluster that grows by itself has to know
        with pytest.raises(UserError, match=r"has room for 1; set --cluster.workers 1, or add machines"):
            backend.available([2])
        assert asked() == []
        nodes.add()
        assert backend.could_have([3], 1) and backend.available([2]) == 2
        nodes.remove()
        assert not backend.could_have([3], 1) and len(asked()) == 3
        backend._machines.close()
        assert asked() == []
    finally:
        backend.stop()
        nodes.add()


def asked() -> list[dict[str, float]]:
    """What the cluster was asked to have room for."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    found: list[dict[str, float]] = json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")
    return found


def nap(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """A job that has its room for a while."""
    time.sleep(job["seconds"])
    return {"end": time.time()}


def where(job: dict[str, Any], process: Process) -> dict[str, Any]:
    """A job of all workers that says on which of Ray's machines each is."""
    import ray

    found: list[str | None] = [None] * process.world_size
    torch.distributed.all_gather_object(found, ray.get_runtime_context().get_node_id())
    return {"nodes": found}


@pytest.mark.parametrize(("placement", "machines"), [("strict_pack", 1), ("strict_spread", 2)])
def test_workers_stand_where_placement_wants_them(nodes: Nodes, tmp_path: Path, placement, machines: int) -> None:
    nodes.add()
    config = ClusterConfig(workers=2, cpus_per_worker=0.5, placement=placement, address=nodes.address, wait_seconds=0)
    backend = RayBackend(config, tmp_path)
    job = {"stage": "where", "folder": str(tmp_path), "function": f"{__name__}:where"}
    try:
        backend.start()
        assert len(set(backend.run(job, counts=(2,))["nodes"])) == machines
    finally:
        backend.stop()


def test_a_job_waits_for_room_that_another_one_of_the_run_has(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    nodes.remove()  # one CPU is left
    backend = RayBackend(ClusterConfig(workers=2, address=nodes.address, wait_seconds=0), tmp_path)
    ends: dict[str, float] = {}

    def carry_out(name: str, seconds: float) -> None:
        (tmp_path / name).mkdir()
        job = {"stage": name, "folder": str(tmp_path / name), "function": f"{__name__}:nap", "seconds": seconds}
        ends[name] = backend.run(job)["end"]

    try:
        backend.start()
        first = threading.Thread(target=carry_out, args=("first", 12.0), daemon=True)
        first.start()
        while Machines(ClusterConfig()).room():
            time.sleep(0.1)
        carry_out("second", 0.0)  # longer than a job that is alone would wait
        first.join()
        assert ends["second"] >= ends["first"]
    finally:
        backend.stop()
        nodes.add()
