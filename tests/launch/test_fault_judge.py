"""The judge of the runs with faults finds what it is to find; see tests/launch/faulty."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint_places import COMPLETE, name_of
from tests.launch.faulty.faults import EVERY, FAULTS, FILLER, fill_disk
from tests.launch.faulty.judge import checkpoints, complaints, gone_on_from, over, samples_of_steps

GOOD = {
    "fault": "kill", "seed": 1, "step": 55, "complete": 40, "saving": None,
    "detected_seconds": 20.0, "training_again_seconds": 60.0, "resumed_from": 40, "steps_lost": 15,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"detected_seconds": 20.1}, "noticed after 20.1 s, not 20"),
        ({"training_again_seconds": 60.1}, "training again 60.1 s after that, not 60"),
        ({"step": 59, "complete": 40, "resumed_from": 39}, "went on from step 39, though that of step 40 was complete"),
        ({"step": 61, "complete": 40}, f"21 steps lost, not {EVERY} at most"),
        ({"step": 64, "saving": 60, "complete": 20, "resumed_from": 20}, f"44 steps lost, not {EVERY + 4} at most"),
    ],
)
def test_a_row_over_a_limit_is_told(change: dict[str, Any], says: str) -> None:
    assert over(GOOD) == []
    assert over(GOOD | change) == [says]
    assert complaints([GOOD, GOOD | change]) == [f"kill, seed 1: {says}"]


def test_steps_since_a_save_was_begun_that_was_not_complete_come_on_top() -> None:
    assert over(GOOD | {"step": 64, "saving": 60}) == []
    assert over(GOOD | {"step": 64, "saving": 60, "resumed_from": 60}) == []
    assert over(GOOD | {"step": 60, "resumed_from": 61}) == []  # it left with a checkpoint
    assert over(GOOD | {"step": 64, "detected_seconds": None}) == []  # it did not stop


def test_a_row_that_failed_is_told() -> None:
    assert complaints([{"fault": "node", "seed": 3, "failed": "no training"}, GOOD]) == ["node, seed 3: no training"]


def test_only_marked_checkpoints_are_complete(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none") == (0, None)
    for step in (20, 40):
        (tmp_path / name_of(step)).mkdir()
        (tmp_path / name_of(step) / COMPLETE).touch()
    assert checkpoints(tmp_path) == (40, None)
    (tmp_path / f".partial_{name_of(60)}").mkdir()
    assert checkpoints(tmp_path) == (40, 60)
    (tmp_path / f".partial_{name_of(60)}").rename(tmp_path / name_of(60))
    assert checkpoints(tmp_path) == (40, 60)
    (tmp_path / name_of(60) / COMPLETE).touch()
    assert checkpoints(tmp_path) == (60, None)


def test_samples_of_a_step_are_those_of_all_its_ranks_whoever_did_it(tmp_path: Path) -> None:
    note(tmp_path, 0, (1, 2, [5, 1]), (2, 2, [3, 4]), (2, 1, [3, 4, 0, 2]))
    note(tmp_path, 1, (1, 2, [7, 6]))  # the second step was begun without it, and done again
    assert samples_of_steps(tmp_path) == {1: [1, 5, 6, 7], 2: [0, 2, 3, 4]}


@pytest.mark.parametrize("again", [(1, 2, [5, 2]), (1, 1, [1, 2, 5, 6])])
def test_a_step_that_is_done_again_with_other_samples_is_told(
    tmp_path: Path, again: tuple[int, int, list[int]]
) -> None:
    note(tmp_path, 0, (1, 2, [5, 1]), again)
    note(tmp_path, 1, (1, 2, [7, 6]))
    with pytest.raises(AssertionError, match="step 1 had samples"):
        samples_of_steps(tmp_path)


def test_training_went_on_where_the_first_new_process_began(tmp_path: Path) -> None:
    note(tmp_path, 0, (1, 2, [5, 1]), (2, 2, [3, 4]), (3, 2, [6, 0]), pid=10)
    note(tmp_path, 0, (2, 1, [3, 4, 0, 2]), pid=12)
    note(tmp_path, 1, (1, 2, [7, 6]), (2, 2, [0, 2]), pid=11)
    assert gone_on_from(tmp_path, [10, 11]) == 1


def note(run: Path, rank: int, *lines: tuple[int, int, list[int]], pid: int = 1) -> None:
    """As the hook of the cluster does."""
    with open(run / f"samples.rank{rank}.jsonl", "a") as file:
        for step, workers, samples in lines:
            line = {"step": step, "rank": rank, "of": workers, "pid": pid, "samples": samples}
            file.write(json.dumps(line) + "\n")


def test_a_folder_that_is_no_disk_of_its_own_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="is not a disk of its own"):
        fill_disk(tmp_path)
    assert not (tmp_path / FILLER).exists()
    assert [name for name, fault in FAULTS.items() if fault.fills_disk] == ["disk", "disk_on"]
