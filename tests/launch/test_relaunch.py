"""What tells a command that torchrun or Slurm starts again from one that a person gives again."""

import os

import pytest

from launch.relaunch import is_relaunch, launch_names

TORCHRUN = {"TORCHELASTIC_RUN_ID": "3f2c", "TORCHELASTIC_RESTART_COUNT": "0"}
NAMELESS = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}
SLURM = {"SLURM_JOB_ID": "17"}


@pytest.mark.parametrize(
    ("first", "then", "again"),
    [
        (TORCHRUN, {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}, True),
        (TORCHRUN, TORCHRUN, True),  # of several machines, on one whose own processes did not fail
        (TORCHRUN, {**TORCHRUN, "TORCHELASTIC_RUN_ID": "8d1e"}, False),
        (NAMELESS, {**NAMELESS, "TORCHELASTIC_RESTART_COUNT": "1"}, True),
        (NAMELESS, {}, False),
        (SLURM, {**SLURM, "SLURM_RESTART_COUNT": "1"}, True),
        (SLURM, {**SLURM, "SLURM_RESTART_COUNT": "0"}, False),  # given twice within a job
        (SLURM, SLURM, False),
        ({**SLURM, "SLURM_RESTART_COUNT": "1"}, {**SLURM, "SLURM_RESTART_COUNT": "1"}, False),  # twice, once requeued
        ({**SLURM, "SLURM_RESTART_COUNT": "1"}, {**SLURM, "SLURM_RESTART_COUNT": "2"}, True),
        (SLURM, {"SLURM_JOB_ID": "18", "SLURM_RESTART_COUNT": "1"}, False),
        ({**SLURM, **TORCHRUN}, {**SLURM, "SLURM_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "8d1e"}, True),
        ({}, {}, False),
    ],
)
def test_the_same_launch_is_known_again(first: dict[str, str], then: dict[str, str], again: bool) -> None:
    assert is_relaunch(launch_names(first), then) is again


def test_torchruns_without_a_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = launch_names(NAMELESS)
    monkeypatch.setattr("os.getppid", os.getpid)
    assert not is_relaunch(noted, NAMELESS)
