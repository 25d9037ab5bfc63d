"""What a run took over all its starts."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launch.graph import Attempt, Observer, Stage, StageLeft, read_status, run_graph
from launch.report.run_folder import Stage as Told
from launch.report.timeline import timeline
from launch.spent import SINCE, spent


class Nobody(Observer):
    """Looks away."""

    def stage_started(self, stage: Stage, attempt: Attempt) -> None:
        """Nothing."""

    def stage_ended(self, stage: Stage, outcome: str, seconds: float, message: str) -> None:
        """Nothing."""


def test_a_start_that_was_cut_off_counts_until_it_last_wrote(tmp_path: Path) -> None:
    log, other = tmp_path / "log.txt", tmp_path / "metrics.jsonl"
    for file, moment in ((log, 1_000_060.0), (other, 1_000_010.0)):
        file.write_text("")
        os.utime(file, (moment, moment))
    assert spent({"seconds": 5.0}, [log]) == 5.0
    assert spent({"seconds": 5.0, SINCE: 1_000_000.0}, [log, other]) == 65.0
    assert spent({SINCE: 1_000_100.0}, [log, tmp_path / "gone"]) == 0.0
    assert spent({}, []) == 0.0


def test_a_stage_that_is_left_and_taken_up_again_has_the_time_of_both(tmp_path: Path) -> None:
    starts: list[Attempt] = []

    def run(attempt: Attempt) -> Mapping[str, Any]:
        starts.append(attempt)
        time.sleep(0.2)
        (attempt.folder / "log.txt").write_text("so far")
        if len(starts) == 1:
            raise StageLeft("asked to leave")
        return {}

    stage = Stage(name="a", folder=tmp_path / "a", run=run, inputs=(), parts={}, outputs=(), cpus=1)
    with pytest.raises(KeyboardInterrupt):
        run_graph([stage], 1, Nobody())
    assert SINCE in read_status(stage.folder) and read_status(stage.folder)["seconds"] == 0.0
    time.sleep(0.5)  # nobody is at work
    run_graph([stage], 1, Nobody())
    status = read_status(stage.folder)
    assert starts[1].resumed and SINCE not in status
    assert 0.35 < status["seconds"] < 0.85
    told = Told(
        name="a", folder=stage.folder, state="done", started="2026-01-05T10:00:00+00:00",
        ended="2026-01-05T10:01:40+00:00", seconds=50.0, restarts=1, outputs={}, error="", done_share=None, curve=None,
        restart_log=(), bad_updates=(), bad_samples={}, unscored=(), log_tail="",
    )  # fmt: skip
    later = Told(**{**vars(told), "name": "b", "started": "2026-01-05T10:01:40+00:00", "ended": None, "seconds": 100.0})
    assert timeline((told, later)) == {"a": (0.0, 50.0), "b": (50.0, 50.0)}
