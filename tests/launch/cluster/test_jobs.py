"""`trimline cluster` with a real head of Ray's on the loopback."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.cli import main
from launch.status import read_state

ROOT = Path(__file__).resolve().parents[3]
TINY = str(ROOT / "tests" / "launch" / "tiny.yaml")
SECRET = "planted-secret-0123456789"
HAS_SERVER = all(importlib.util.find_spec(name) for name in ("aiohttp", "aiohttp_cors", "opencensus", "colorful"))
needs_server = pytest.mark.skipif(not HAS_SERVER, reason="Ray's job server: pip install -e '.[cluster]'")
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_JOB_HEADERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cluster of one machine, bound to the loopback as `trimline` binds its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="tl-head-", dir="/tmp")
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    command += ["--port=0", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += ["--num-cpus=2", f"--temp-dir={folder}", "--object-store-memory=100000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "GLOO_SOCKET_IFNAME": "lo"}
    own |= {"WANDB_API_KEY": SECRET, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    token = Path(folder) / "token"
    token.write_text("cluster-token-0123456789abcdef")
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = {**os.environ, **own}
    environment.pop("RAY_ADDRESS", None)
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while not answers(f"{address}/api/version", token.read_text()):
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.5)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        yield address, running
    finally:
        os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
        started = psutil.Process(running.pid).children(recursive=True) if running.poll() is None else []
        running.terminate()
        running.wait(60)
        for left in psutil.wait_procs(started, 20)[1]:
            left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def answers(url: str, token: str) -> bool:
    try:
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        urllib.request.urlopen(asked, timeout=2).close()
    except OSError:
        return False
    return True


def submit(address: str, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    options = ["--launcher", "ray", "--cluster.workers", "1", "--out", str(out), "--trim.targets", "[]"]
    options += ["--evaluate.statement_splits", "[]", "--address", address, "--python", sys.executable, "--json", *words]
    assert main(["cluster", "submit", TINY, *options]) == 0
    sent: dict[str, Any] = json.loads(capsys.readouterr().out)
    return sent


def call(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["cluster", *words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def listening(root: psutil.Process) -> dict[str, str]:
    """Addresses that a process and all below it wait at for somebody, with the process's name."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            connections = process.net_connections("inet")
            name = " ".join(process.cmdline()[:3])
        except psutil.NoSuchProcess:
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                found[f"{one.laddr.ip}:{one.laddr.port}"] = name
    return found


@needs_server
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_run_is_sent_followed_and_done(
    head: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, _ = head
    sent = submit(address, tmp_path / "run", capsys, "--stage", "pretrain")
    assert re.fullmatch(r"trimline-tiny-[0-9a-f]{8}", sent["id"])
    done = call(capsys, "logs", sent["id"], "--address", address, "--follow")
    assert done["status"] == "SUCCEEDED", done["logs"]
    assert "pretrain: done" in done["logs"]
    state = call(capsys, "status", sent["id"], "--address", address)
    assert (state["status"], state["out"], state["name"]) == ("SUCCEEDED", str(tmp_path / "run"), "tiny")
    assert (state["exit_code"], state["ended"] is not None) == (0, True)
    assert "pretrain: done" in call(capsys, "logs", sent["id"], "--address", address)["logs"]
    run = read_state(tmp_path / "run")
    assert (run["state"], run["stages"]["pretrain"]["state"]) == ("finished", "done")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["commit"]
    assert "trimline_run.yaml" in facts["command"]


@needs_server
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_run_is_stopped_in_order_with_all_ports_on_the_loopback_and_no_secret_written(
    head: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, running = head
    words = ["--stage", "pretrain", "--pretrain.loop.samples", "10000000", "--tracking.wandb", "offline"]
    words += ["--cluster.workers", "2", "--cluster.cpus_per_worker", "0.5", "--engine.name", "deepspeed"]
    sent = submit(address, tmp_path / "run", capsys, *words)
    end = time.monotonic() + 400
    while not (tmp_path / "run" / "run.json").exists() or not steps(tmp_path / "run"):
        assert time.monotonic() < end, call(capsys, "logs", sent["id"], "--address", address)["logs"]
        assert call(capsys, "status", sent["id"], "--address", address)["status"] in ("PENDING", "RUNNING")
        time.sleep(1)
    ports = listening(psutil.Process(running.pid))
    assert ports
    assert {at: who for at, who in ports.items() if at.rpartition(":")[0] not in LOOPBACK} == {}
    stopped = call(capsys, "stop", sent["id"], "--address", address)
    assert stopped["status"] == "STOPPED"
    run = read_state(tmp_path / "run")
    assert (run["state"], run["process"]) == ("stopped", None)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in call(capsys, "logs", sent["id"], "--address", address)["logs"]


def steps(out: Path) -> int | None:
    pretrain = read_state(out)["stages"].get("pretrain")
    return None if pretrain is None else pretrain["step"]


@needs_server
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_unknown_jobs_and_failing_ones_are_told(
    head: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, _ = head
    for what in ("status", "logs", "stop"):
        assert main(["cluster", what, "no-such-job", "--address", address]) == 2
        error = capsys.readouterr().err
        assert f"no job no-such-job at {address}" in error
        assert error.count("\n") == 1
    sent = submit(address, tmp_path / "run", capsys, "--data.root", "/nowhere", "--data.name", "coco")
    assert main(["cluster", "logs", sent["id"], "--follow", "--address", address]) == 1
    assert "/nowhere" in capsys.readouterr().out
    assert main(["cluster", "status", sent["id"], "--address", address]) == 0
    assert f"{sent['id']}: FAILED" in capsys.readouterr().out
    assert "/nowhere" in call(capsys, "logs", sent["id"], "--address", address)["logs"]


@needs_server
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_wrong_token_and_a_lost_one_are_told(
    head: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = head
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-token-0123456789")
    assert main(["cluster", "status", "x", "--address", address]) == 2
    error = capsys.readouterr().err
    assert "wants another token" in error
    assert "wrong-token" not in error
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["cluster", "status", "x", "--address", address]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://me:pw0123456@head:8265"])
def test_addresses_that_are_none_of_a_dashboard_are_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status", "x", "--address", address]) == 2
    error = capsys.readouterr().err
    assert "http://127.0.0.1:8265" in error
    assert "pw0123456" not in error


def test_nobody_at_the_address_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "logs", "x", "--address", "http://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    wanted = "no Ray job server answers at http://127.0.0.1:9" if HAS_SERVER else "pip install -e '.[cluster]'"
    assert wanted in error
    assert error.count("\n") == 1
