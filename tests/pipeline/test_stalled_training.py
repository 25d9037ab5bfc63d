"""What counts as a step that does not end: an update that hangs, and not a checkpoint that takes long to write."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep import targets
from pipeline.checkpoint import CheckpointConfig
from pipeline.checkpoint_places import StorePlace
from pipeline.data.batch import ImageTextBatch
from pipeline.engine import NonFiniteError
from pipeline.process import Process
from pipeline.pulse import FilePulse
from pipeline.stage import Stage
from pipeline.tasks.task import Losses
from tests.pipeline.stores import FailingStore, SlowStore, emptied
from tests.pipeline.test_bad_updates import STEPS, Poisoned, run_task

STALL, LONG = 0.6, 1.5


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why the process would have ended itself, at each look."""
    words: list[str] = []
    monkeypatch.setattr(FilePulse, "_give_up", lambda pulse, why: words.append(why))
    monkeypatch.setattr("pipeline.pulse._SECONDS", 0.05)
    monkeypatch.setattr("pipeline.pulse._GRACE_SECONDS", 0.0)
    return words


def train_with(folder: Path, checkpoint: CheckpointConfig, task: Poisoned | None = None) -> dict[str, Any]:
    """Trains with a checkpoint after each step, under a pulse that wants a step each `STALL` seconds."""
    with FilePulse(folder, 0, stall_seconds=STALL) as pulse:
        stage = Stage(folder, Process(), checkpoint=checkpoint, pulse=pulse)
        return run_task(task or Poisoned(set(), 0, Process()), Process(), stage)[0]


class Opening(Poisoned):
    """A task whose second update sees to it that the slow store takes the first checkpoint some time later."""

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        if self.calls == 1:
            threading.Timer(LONG, SlowStore.gate.set).start()
        return super().losses(forward, batch, progress)


def test_a_save_that_waits_for_a_slow_upload_is_not_stuck(tmp_path: Path, given_up: list[str]) -> None:
    SlowStore.gate.clear()
    result = train_with(tmp_path, CheckpointConfig(path=emptied(SlowStore)), Opening(set(), 0, Process()))
    assert SlowStore.gate.is_set() and result["steps"] == STEPS
    assert given_up == []


def test_clearing_up_after_a_save_that_failed_is_not_stuck(
    tmp_path: Path, given_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon, abandoned = StorePlace.abandon, []

    def slowly(place: StorePlace, name: str, aside: Path) -> None:
        time.sleep(LONG)
        abandoned.append(name)
        abandon(place, name, aside)

    monkeypatch.setattr(StorePlace, "abandon", slowly)
    monkeypatch.setattr(targets, "_PAUSES", ())
    monkeypatch.setattr(FailingStore, "fails", "upload")
    monkeypatch.setattr(FailingStore, "failures", 1)
    assert train_with(tmp_path, CheckpointConfig(path=emptied(FailingStore)))["steps"] == STEPS
    assert abandoned == ["step_00000001"] and given_up == []


class Hanging(Poisoned):
    """A task whose fourth update takes long."""

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        if self.calls == 3:
            time.sleep(LONG)
        return super().losses(forward, batch, progress)


def test_a_step_that_hangs_after_a_save_is_stuck(tmp_path: Path, given_up: list[str]) -> None:
    train_with(tmp_path, CheckpointConfig(), Hanging(set(), 0, Process()))
    assert f"no step for {STALL:g} s after step 3" in given_up


def test_a_loss_is_not_forgotten_by_a_rest_but_at_the_end(tmp_path: Path, given_up: list[str]) -> None:
    pulse = FilePulse(tmp_path, 0)
    pulse.lost("another worker was lost")
    pulse.rest()
    time.sleep(0.01)
    pulse._beat()
    assert given_up == ["another worker was lost, after step None"]
    pulse.end()
    pulse._beat()
    assert len(given_up) == 1


class Bereft(Poisoned):
    """A task that fails once another process was lost."""

    pulse: FilePulse

    def losses(self, forward: Any, batch: ImageTextBatch, progress: float) -> Losses:
        self.pulse.lost("another worker was lost")
        return super().losses(forward, batch, progress)


def test_a_training_that_ends_by_itself_after_a_loss_is_not_ended(tmp_path: Path, given_up: list[str]) -> None:
    task, pulse = Bereft({0}, 0, Process()), FilePulse(tmp_path, 0)
    task.pulse = pulse
    with pytest.raises(NonFiniteError):
        run_task(task, Process(), Stage(tmp_path, Process(), pulse=pulse))
    time.sleep(0.01)
    pulse._beat()
    assert given_up == []
