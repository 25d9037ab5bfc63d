"""A stage whose processes are lost is started again, so often and no more; an error is told once."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from launch.backend import RESTARTS, Care
from launch.cluster_config import ClusterConfig, WorkerRange
from launch.config import RunConfig
from launch.graph import StageLeft
from launch.job import JobFailed, WorkerDied
from launch.local_backend import LocalBackend
from launch.reading import read_config
from launch.recipes import find_recipe
from launch.signals import stopped_by_sigterm
from launch.stages import pretrain_counts
from pipeline.pulse import LEAVE
from tests.launch.test_backends import job

TINY = str(Path(__file__).parent / "tiny.yaml")


def lost(folder: Path, times: int, care: Care) -> dict[str, Any]:
    """A job that loses a partner so many times."""
    backend = LocalBackend(gpus=0, threads=1)
    backend.start()
    return backend.run({**job(folder / "stage", "lose_partner"), "times": times}, (1,), care)


def test_a_loss_is_made_good_and_told_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    restarts: list[int] = []
    care = Care(restarts=2, newest_step=lambda: 120, on_restart=lambda: restarts.append(1))
    assert lost(tmp_path, 2, care) == {"starts": 3}
    assert restarts == [1, 1]
    lines = [json.loads(line) for line in (tmp_path / "stage" / RESTARTS).read_text().splitlines()]
    assert [(line["step"], line["workers"], line["restart"]) for line in lines] == [
        (120, 1, "1 of 2"),
        (120, 1, "2 of 2"),
    ]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said[1] == "stage: a worker was lost; going on from step 120 with 1 worker, restart 2 of 2"
    assert len(said) == 2


def test_losses_without_a_newer_checkpoint_in_between_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="rank 1 is gone"):
        lost(tmp_path / "same", 3, Care(restarts=2, newest_step=lambda: 120))
    steps = iter([10, 20, 30, 40])
    assert lost(tmp_path / "onward", 4, Care(restarts=1, newest_step=lambda: next(steps))) == {"starts": 5}


def test_an_error_of_the_program_is_not_tried_again(tmp_path: Path) -> None:
    backend = LocalBackend(gpus=0, threads=1)
    restarts: list[int] = []
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        backend.run(job(tmp_path / "a", "crash"), (1,), Care(restarts=3, on_restart=lambda: restarts.append(1)))
    assert restarts == []


def test_sigterm_gives_notice_and_a_second_one_ends_at_once(tmp_path: Path) -> None:
    backend = LocalBackend(gpus=0, threads=1)
    leaving = {**job(tmp_path / "stage", "leave_when_asked"), "can_leave": True}
    with stopped_by_sigterm(backend.ask_to_leave, 30.0):
        with pytest.raises(StageLeft, match="after step 1"):
            backend.run(leaving, (1,))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert (tmp_path / "stage" / LEAVE).exists()
    with pytest.raises(StageLeft, match="was not started"):
        backend.run(job(tmp_path / "next", "nothing"), (1,))


def test_without_anything_to_save_sigterm_ends_at_once_and_notice_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stopped_by_sigterm(LocalBackend(0, 1).ask_to_leave, 30.0):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    with pytest.raises(KeyboardInterrupt), stopped_by_sigterm(lambda: True, 0.1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)


def test_workers_are_a_number_or_a_range_of_which_some_divide_the_batch() -> None:
    def config(*words: str) -> RunConfig:
        options = ["--launcher=ray", "--engine.name=deepspeed", *words]
        return read_config(RunConfig, [find_recipe(TINY)], options)

    assert pretrain_counts(config("--cluster.workers=4")) == [4]
    assert pretrain_counts(config("--cluster.workers", "{min: 1, max: 5}")) == [1, 2, 4]
    assert config("--cluster.workers.min=2", "--cluster.workers.max=3").cluster == ClusterConfig(
        workers=WorkerRange(min=2, max=3)
    )
    with pytest.raises(UserError, match="must be a multiple of"):
        pretrain_counts(config("--cluster.workers", "{min: 3, max: 3}"))
    with pytest.raises(UserError, match="1 <= min <= max"):
        config("--cluster.workers", "{min: 3, max: 2}")


@pytest.mark.parametrize("key", ["restarts", "silent_seconds", "stall_seconds", "wait_seconds", "notice_seconds"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_times_below_nothing_and_without_end_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"cluster.{key}={value} must be 0 or more"):
        ClusterConfig(**{key: value})  # type: ignore[arg-type]


def test_less_silence_than_signs_of_life_need_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3: signs of life come once a second"):
        ClusterConfig(silent_seconds=0.5)


@pytest.mark.parametrize(("workers", "gpus"), [(2, 0.5), (WorkerRange(min=1, max=2), 1.5), (1, 1.5)])
def test_processes_that_train_together_share_no_gpu(workers: int | WorkerRange, gpus: float) -> None:
    with pytest.raises(UserError, match=rf"cluster.gpus_per_worker={gpus} must be whole, or 0.*gpus_per_worker 1"):
        ClusterConfig(workers=workers, gpus_per_worker=gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.5), (2, 0), (2, 1), (1, 2)])
def test_a_part_of_a_gpu_is_for_one_worker(workers: int, gpus: float) -> None:
    assert ClusterConfig(workers=workers, gpus_per_worker=gpus).gpus_per_worker == gpus
