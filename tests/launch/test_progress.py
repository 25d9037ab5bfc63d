"""What a person sees while stages run."""

import io
import json
import time
from pathlib import Path

import pytest

from launch.graph import Attempt, Stage
from launch.progress import ProgressDisplay, clock, describe, read_progress
from pipeline.progress import ProgressFile


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def stage(folder: Path) -> Stage:
    return Stage(name="pretrain", folder=folder, run=lambda attempt: {})


def follow(stream: io.StringIO, folder: Path, wanted: str) -> str:
    folder.mkdir()
    one = stage(folder)
    with ProgressDisplay(stream, line_seconds=0.01) as display:
        display.stage_started(one, Attempt(folder=folder, resumed=False))
        state = {"done": 30, "total": 40, "unit": "samples", "text": "loss 1.5"}
        (folder / "progress.json").write_text(json.dumps(state))
        end = time.monotonic() + 20
        while wanted not in stream.getvalue():
            assert time.monotonic() < end, stream.getvalue()
            time.sleep(0.02)
        display.stage_ended(one, "done", 61.0, "")
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = follow(io.StringIO(), tmp_path / "a", "75%")
    lines = text.splitlines()
    assert lines[0] == "pretrain: started"
    assert "pretrain: 75% (30 of 40 samples), loss 1.5" in lines
    assert lines[-1] == "pretrain: done in 1 min 01 s"
    assert "\r" not in text


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    text = follow(Terminal(), tmp_path / "a", "75%|")
    assert "loss 1.5" in text
    assert "pretrain: done in 1 min 01 s" in text


def test_a_blocked_stage_is_left_to_the_summary(tmp_path: Path) -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream) as display:
        display.stage_ended(stage(tmp_path), "blocked", 0.0, "")
        display.stage_ended(stage(tmp_path), "failed", 0.0, "no bread")
    assert stream.getvalue() == "pretrain: failed: no bread\n"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"done": 1}'])
def test_a_progress_file_that_is_missing_or_half_written_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "progress.json").write_text(text)
    assert read_progress(tmp_path / "progress.json") is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"done": 1200, "total": 4000, "unit": "samples", "text": ""}, "30% (1200 of 4000 samples)"),
        ({"done": 0.5, "total": 1, "unit": "share", "text": "loss 2"}, "50%, loss 2"),
    ],
)
def test_progress_in_words(state: dict[str, object], words: str) -> None:
    assert describe(state) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3700, "1 h 01 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert clock(seconds) == words


def test_what_went_wrong_with_wandb_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, stream = stage(tmp_path / "a"), io.StringIO()
    (tmp_path / "a" / "tracking.json").write_text(json.dumps({"starts": 1, "problem": "wandb is not online (no key)"}))
    with ProgressDisplay(stream) as display:
        display.stage_started(one, Attempt(folder=tmp_path / "a", resumed=False))
        end = time.monotonic() + 20
        while "wandb" not in stream.getvalue():
            assert time.monotonic() < end
            time.sleep(0.02)
        display.stage_ended(one, "done", 1.0, "")
    assert stream.getvalue().count("pretrain: wandb is not online (no key)\n") == 1


def test_the_time_left_is_that_of_the_pace_since_the_beginning(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "progress.json", 100.0, "samples")
    progress.show(40.0, now=True)  # where an earlier attempt stopped
    assert json.loads((tmp_path / "progress.json").read_text())["eta_seconds"] is None
    time.sleep(0.1)
    progress.show(60.0, now=True)
    assert 0.2 <= json.loads((tmp_path / "progress.json").read_text())["eta_seconds"] < 5.0
