"""No key, password or token is written down, and no port is open to others."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.errors import UserError
from launch.cli import main
from launch.config import RunConfig
from launch.graph import Attempt, Stage, run_graph
from launch.job import JobFailed
from launch.local_backend import LocalBackend
from launch.progress import ProgressDisplay
from launch.ray_backend import _copy_without_secrets
from launch.reading import read_config
from launch.status import read_state

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "launch" / "tiny.yaml"
PLANTED = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_plantedPlantedPlanted",
    "MY_DATABASE_PASSWORD": "correct-horse-battery",
}
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def files_with_secrets(folder: Path) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [f"{path}: {name}" for name, secret in PLANTED.items() if secret.encode() in content]
    return found


def process(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", "run", str(TINY), "--out", str(out), *words]
    environment = {**os.environ, **PLANTED, "PYTHONPATH": str(ROOT), "HOME": str(out.parent)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_whole_run_writes_down_no_secret_of_its_environment(tmp_path: Path) -> None:
    run = process(tmp_path / "run", "--tracking.wandb", "offline", "--trim.targets", "[1.0]")
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    # Three stages have told wandb, and the report is among what is searched.
    assert len(list(tmp_path.glob("run/stages/*/wandb/offline-run-*/*.wandb"))) == 4
    assert (tmp_path / "run" / "report.html").exists()
    assert files_with_secrets(tmp_path) == []
    assert not [name for name, secret in PLANTED.items() if secret in errors]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_rays_ports_are_on_the_loopback_and_a_failed_run_keeps_its_logs_without_secrets(tmp_path: Path) -> None:
    words = [
        "--launcher",
        "ray",
        "--cluster.workers",
        "2",
        "--cluster.cpus_per_worker",
        "0.5",
        "--cluster.restarts",
        "0",
    ]
    words += ["--engine.name", "deepspeed", "--pretrain.loop.samples", "10000000", "--tracking.wandb", "offline"]
    run = process(tmp_path / "run", *words)
    try:
        end = time.monotonic() + 400
        while not (tmp_path / "run/stages/pretrain/metrics.jsonl").exists() or not steps(tmp_path / "run"):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < end
            time.sleep(0.5)
        root = psutil.Process(run.pid)
        ports = listening(root)
        workers = [one for one in root.children(recursive=True) if "ray::" in " ".join(one.cmdline()[:1])]
        assert ports
        assert {at: who for at, who in ports.items() if at.rpartition(":")[0] not in LOOPBACK} == {}
        trainers = [one for one in workers if "RayTrainWorker" in one.cmdline()[0]]
        assert len(trainers) == 2
        trainers[1].kill()
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 1, errors
    finally:
        run.kill()
    assert list((tmp_path / "run" / "ray_logs").iterdir())
    assert files_with_secrets(tmp_path / "run") == []


def steps(out: Path) -> int | None:
    step: int | None = read_state(out)["stages"]["pretrain"]["step"]
    return step


def listening(root: psutil.Process) -> dict[str, str]:
    """Addresses at which a process and all below it wait for somebody."""
    found = {}
    for one in [root, *root.children(recursive=True)]:
        try:
            waiting = [c for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            found |= {f"{c.laddr.ip}:{c.laddr.port}": " ".join(one.cmdline()[:4]) for c in waiting}
        except psutil.NoSuchProcess:
            continue
    return found


def test_errors_tracebacks_and_logs_of_a_stage_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "stages" / "one"
    job = {"stage": "one", "folder": str(folder), "function": "tests.launch.jobs:blurt"}

    def run(attempt: Attempt) -> Any:
        return LocalBackend(0, 1).run(job)

    with ProgressDisplay() as display:
        result = run_graph([Stage(name="one", folder=folder, run=run)], 0, display)
    assert "ConnectionError: PUT https://***@host/x?token=*** with *** failed" in result.failures["one"].message
    assert "the key is ***" in (folder / "log.txt").read_text()
    assert "Traceback" in (folder / "log.txt").read_text()
    assert files_with_secrets(tmp_path) == []


def test_an_error_of_the_launchers_own_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])

    def run(attempt: Attempt) -> Any:
        raise RuntimeError(f"bad token {PLANTED['HF_TOKEN']}")

    with ProgressDisplay() as display:
        result = run_graph([Stage(name="one", folder=tmp_path / "one", run=run)], 0, display)
    assert result.failures["one"].message == "RuntimeError: bad token ***"
    assert isinstance(JobFailed(""), RuntimeError)
    assert files_with_secrets(tmp_path) == []


def test_rays_logs_are_copied_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])
    (tmp_path / "a").write_bytes(b"\xff env: " + PLANTED["HF_TOKEN"].encode() + b" https://u:p@h/ \n")
    _copy_without_secrets(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "\ufffd env: *** https://***@h/ \n"


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("data.root", "https://me:hunter2hunter2@host/shards"),
        ("data.root", "https://host/shards?token=hunter2hunter2"),
        ("data.annotations", "[train=https://host/a.json?X-Amz-Signature=hunter2hunter2]"),
        ("pretrain.splits", "{s3://AKIA:hunter2hunter2@bucket/train: 1.0}"),
        ("tracking.project", "https://hunter2hunter2@host"),
    ],
)
def test_a_url_with_a_secret_is_refused_before_anything_is_written(
    tmp_path: Path, key: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", str(TINY), "--out", str(out), f"--{key}", url, "--json"]) == 2
    told = capsys.readouterr()
    assert "***" in told.err
    assert key.split(".")[0] in told.err
    assert "hunter2" not in told.err + told.out
    assert not out.exists()


def test_a_secret_in_a_file_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("data: {root: 'https://me:hunter2hunter2@host/shards'}\n")
    with pytest.raises(UserError, match=r"data\.root=https://\*\*\*@host/shards has a password"):
        read_config(RunConfig, [TINY, file], [])


def test_the_command_line_is_kept_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import machine

    monkeypatch.setattr(sys, "argv", ["/x/trimline", "run", "--data.root", "https://u:hunter2@h/x", "--name", "a b"])
    assert machine.command() == "trimline run --data.root https://***@h/x --name 'a b'"
