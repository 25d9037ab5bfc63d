"""`trimline shard --executor ray` on a real cluster of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from launch.ray_executor import as_user_error, ray_executor, tasks_at_once
from tests.data_prep.samples import contents

ROOT = Path(__file__).resolve().parents[2]


def shard(out: str, cwd: Path, *words: str) -> dict[str, Any]:
    sizes = ["--sizes.train", "60", "--sizes.val", "10", "--sizes.test", "0", "--sizes.unseen", "0"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch",
            "shard",
            "shapes",
            "--out",
            out,
            *sizes,
            "--shard_samples",
            "10",
            "--json",
            *words,
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
def test_a_ray_cluster_writes_the_bytes_that_one_process_writes(tmp_path: Path) -> None:
    # A relative folder means the user's one on the workers too.
    on_ray = shard("ray", tmp_path, "--executor", "ray", "--workers", "2")
    alone = shard("alone", tmp_path, "--workers", "1")
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert {**on_ray, "out": ""} == {**alone, "out": ""}
    assert on_ray["written"] == 70


@pytest.mark.parametrize(
    ("cpus", "workers", "tasks"), [(8, None, 16), (8, 8, 16), (8, 20, 16), (8, 3, 3), (0, None, 1)]
)
def test_no_more_cpus_are_used_than_were_asked_for(cpus: int, workers: int | None, tasks: int) -> None:
    assert tasks_at_once(cpus, workers) == tasks


def test_a_file_that_a_machine_cannot_see_is_one_line_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "tables").read_bytes()
    assert "cannot see" in str(as_user_error(missing.value)) and "--cache DIR" in str(as_user_error(missing.value))
    assert as_user_error(ValueError()) is None


class Halves:
    """Work that refuses odd numbers."""

    def __call__(self, number: int) -> int:
        if number % 2:
            raise UserError(f"{number} is odd; give an even one")
        return number // 2


@pytest.mark.slow
def test_work_is_done_once_each_and_a_users_error_comes_back_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with ray_executor(None, 2) as executor:
        assert sorted(executor.map(Halves(), range(0, 40, 2))) == list(range(20))
        with pytest.raises(UserError) as refused:
            list(executor.map(Halves(), [0, 2, 5]))
        assert str(refused.value) == "5 is odd; give an even one"
