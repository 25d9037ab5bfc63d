"""Both launchers carry the same small jobs out in real processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from data_prep.errors import UserError
from launch.backend import RESTARTS, Backend, Care
from launch.bench_launch import PlainBackend
from launch.cluster_config import ClusterConfig
from launch.graph import Attempt, Stage, StageLeft, run_graph
from launch.job import JobFailed, WorkerDied
from launch.local_backend import LocalBackend
from launch.ray_backend import RayBackend
from launch.run import _keep_logs
from tests.launch.test_graph import Recorder

ROOT = Path(__file__).resolve().parents[2]


def job(folder: Path, function: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return {"stage": folder.name, "folder": str(folder), "function": f"tests.launch.jobs:{function}"}


def check_results_and_errors(backend: Backend, folder: Path, workers: int) -> None:
    result = backend.run(job(folder / "sum", "add_ranks"), (workers,))
    assert result["world_size"] == workers
    assert result["sum"] == workers * (workers + 1) // 2
    with pytest.raises(UserError, match="bread=0 is too little; try 1"):
        backend.run(job(folder / "refuse", "refuse"), (workers,))
    with pytest.raises(JobFailed, match="ZeroDivisionError: a bug"):
        backend.run(job(folder / "crash", "crash"), (workers,))
    assert "tests/launch/jobs.py" in (folder / "crash" / "log.txt").read_text()
    # Nothing of a failed attempt is left to be taken for the next one's.
    assert backend.run(job(folder / "crash", "add_ranks"), (workers,)) == {**result, "pid": result_pid(folder)}


def result_pid(folder: Path) -> int:
    from data_prep.files import read_json

    pid: int = read_json(folder / "crash" / "result.json")["pid"]
    return pid


def test_the_local_launcher_runs_jobs_in_this_process(tmp_path: Path) -> None:
    backend = LocalBackend(gpus=0, threads=1)
    backend.start()
    check_results_and_errors(backend, tmp_path, 1)
    assert backend.run(job(tmp_path / "pid", "add_ranks"), (1,))["pid"] == os.getpid()
    backend.stop()


_LEAD_OR_FOLLOW = """
import sys
from pathlib import Path
from launch.local_backend import LocalBackend
from tests.launch.test_backends import check_results_and_errors
backend = LocalBackend(gpus=0, threads=1)
if backend.is_leader:
    backend.start()
    check_results_and_errors(backend, Path(sys.argv[1]), 2)
    backend.stop()
else:
    backend.follow()
"""


@pytest.mark.timeout(120)
def test_torchruns_processes_take_part_in_every_job(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_LEAD_OR_FOLLOW)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two must be a number of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 must be a number of at least 1"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR=None MASTER_PORT=None cannot meet .*MASTER_ADDR expected"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "in use.*torchrun --master-port PORT"),
    ],
)
def test_processes_that_cannot_meet_are_told_in_one_line(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if "MASTER_ADDR" in variables:
            variables = {**variables, "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in {"RANK": "0", **variables}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=words):
            LocalBackend(gpus=0, threads=1).start()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_no_cluster_answers_is_told_at_once(scheme: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=rf"cluster.address={scheme}127.0.0.1:{port} .*refused.*ray start --head"):
        RayBackend(ClusterConfig(workers=1, address=f"{scheme}127.0.0.1:{port}"), tmp_path).start()


@pytest.mark.timeout(180)
def test_ray_starts_workers_together_alone_and_again(tmp_path: Path) -> None:
    backend = RayBackend(ClusterConfig(workers=2, cpus_per_worker=0.5), tmp_path / "ray")
    try:
        backend.start()
        together = backend.run(job(tmp_path / "together", "add_ranks"), (2,))
        assert (together["sum"], together["world_size"], together["threads"]) == (3, 2, "1")
        check_results_and_errors(backend, tmp_path / "alone", 1)

        # Side by side, each in a process of its own.
        pids: list[int] = []
        threads = [
            threading.Thread(
                target=lambda name=name: pids.append(backend.run(job(tmp_path / name, "add_ranks"), (1,))["pid"]),
                daemon=True,  # one that waits for a Ray that was shut down spins, and would keep pytest from ending
            )
            for name in "ab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(pids)) == 2

        with pytest.raises(WorkerDied, match="ended without a result"):
            backend.run(job(tmp_path / "dies", "die_once"), (1,))
        restarts: list[int] = []
        died = job(tmp_path / "again", "die_once")
        assert backend.run(died, (1,), Care(restarts=1, on_restart=lambda: restarts.append(1))) == {"survived": True}
        assert restarts == [1]
    finally:
        backend.stop()
    assert not list(tmp_path.glob("**/*.pickle"))


def test_a_job_whose_processes_are_ended_by_a_stop_is_not_started_again(tmp_path: Path) -> None:
    backend = PlainBackend(threads=1, device="cpu")
    restarts: list[int] = []
    ends: list[BaseException] = []

    def run() -> None:
        care = Care(restarts=3, on_restart=lambda: restarts.append(1))
        try:
            backend.run(job(tmp_path / "waits", "wait"), (1,), care)
        except StageLeft as left:
            ends.append(left)

    thread = threading.Thread(target=run, daemon=True)
    try:
        backend.start()
        thread.start()
        while not (tmp_path / "waits" / "begun").exists():
            time.sleep(0.05)
    finally:
        backend.stop()
    thread.join(60)
    assert len(ends) == 1
    assert restarts == []


@pytest.mark.parametrize("failures", [1, 3])
def test_a_start_of_ray_that_takes_too_long_is_tried_again(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[subprocess.Popen[bytes]] = []

    def init(_temp_dir: str, **_: Any) -> None:
        """As Ray 2.60 does on a machine of load 20: a bare Exception, and processes that stay."""
        if len(left) < failures:
            sleep = "import time; print(flush=True); time.sleep(100)"
            command = [sys.executable, "-c", sleep, f"--temp-dir={_temp_dir}/session"]
            left.append(subprocess.Popen(command, stdout=subprocess.PIPE))
            assert left[-1].stdout is not None and left[-1].stdout.readline()  # now it has its command line
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    backend = RayBackend(ClusterConfig(workers=1), tmp_path)
    if failures == 3:
        with pytest.raises(UserError, match=r"in 3 tries \(The current node timed out.*--launcher local"):
            backend.start()
    else:
        backend.start()
    backend.stop()
    assert [process.wait(20) for process in left] == [-signal.SIGKILL] * failures


def test_a_ray_that_does_not_start_is_told_and_not_taken_for_lost_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    def train(attempt: Attempt) -> dict[str, Any]:
        return backend.run(job(attempt.folder, "add_ranks"), (1,), Care(restarts=3))

    monkeypatch.setattr(ray, "init", init)
    backend = RayBackend(ClusterConfig(workers=1), tmp_path / "ray")
    recorder = Recorder()
    with pytest.raises(UserError, match="Ray did not start in 3 tries"):
        run_graph([Stage(name="train", folder=tmp_path / "train", run=train)], 1.0, recorder, backend.start)
    for thread in threading.enumerate():
        if thread.name == "train":
            thread.join(20)
    backend.stop()
    assert recorder.started == ["train"] and recorder.ended == []
    assert "lost" not in caplog.text and not (tmp_path / "train" / RESTARTS).exists()


def test_what_is_wrong_with_the_program_is_not_taken_for_a_slow_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda: None)
    with pytest.raises(TypeError):
        RayBackend(ClusterConfig(workers=1), tmp_path).start()


def test_logs_that_cannot_be_kept_hide_no_other_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = RayBackend(ClusterConfig(workers=1), tmp_path)
    logs = tmp_path / "session" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("x")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(backend, "_session", tmp_path / "session")
    _keep_logs(backend, tmp_path / "file" / "ray_logs")
    assert "could not be kept" in caplog.text
    _keep_logs(backend, tmp_path / "ray_logs")
    assert (tmp_path / "ray_logs" / "raylet.out").read_text() == "x"
