"""The log of a training: whole lines of real JSON, whatever happens to the process and to its numbers."""

import json
import math
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.report.curves import read_curve
from launch.status import _numbers
from pipeline.progress import MetricsLog, read_metrics


def test_metrics_beyond_the_checkpoint_are_dropped_at_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a crash
    MetricsLog(path, 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_what_is_no_number_is_null_and_counted_and_older_logs_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "lr": 0.5}\n')
    log = MetricsLog(path, 1)
    assert log.write({"step": 2, "loss": math.nan, "grad_norm": -math.inf, "skips": {"cut off": 2}})["non_finite"] == 2
    log.write({"step": 3, "loss": 0.5})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()] == read_metrics(path)
    assert read_metrics(path) == [
        {"step": 1, "loss": None, "lr": 0.5},
        {"step": 2, "loss": None, "grad_norm": None, "skips": {"cut off": 2}, "non_finite": 2},
        {"step": 3, "loss": 0.5},
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.path = Path("/dev/full")
    with pytest.raises(UserError, match="could not write /dev/full: No space left"):
        log.write({"step": 1})


def test_curves_and_status_read_null_as_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1, "loss": 2.0, "loss/itm": math.nan})
    log.write({"step": 2, "loss": math.inf, "loss/itm": math.nan, "samples_per_second": 8.0})
    assert _numbers(log.path) == {
        "step": 2, "losses": {"loss": None, "loss/itm": None}, "speed": {"samples_per_second": 8.0}, "non_finite": 2,
        "validation": None,
    }  # fmt: skip
    curve = read_curve(log.path)
    assert curve is not None and curve.scalars == ["loss", "non_finite", "samples_per_second"]
    assert curve.last("loss") == 2.0 and curve.columns["non_finite"].tolist() == [1, 2]
