"""Whether a split was trained on: from a run's own account, by shards that are the same, and not known elsewhere."""

from pathlib import Path

import pytest

from launch.config import RunConfig
from launch.exposure import Exposure, exposure_of, in_caption, in_words
from launch.reading import read_config
from launch.trained_export import TrainedExport
from launch.trained_run import TrainedRun
from tests.launch.report.folders import save

TINY = Path(__file__).parent / "tiny.yaml"


def shards(folder: Path, *digests: str) -> Path:
    listed = [{"url": f"{at}.tar", "nsamples": 1, "filesize": 1, "sha256": each} for at, each in enumerate(digests)]
    save(folder / "index.json", {"shardlist": listed, "account": {}})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with what it was trained on, and a split of its own that it was not trained on."""
    folder = tmp_path / "run"
    shards(folder / "data" / "train", "a", "b")
    shards(folder / "data" / "coco" / "val", "c")
    save(folder / "config.yaml", TINY.read_text())
    return folder


def known(run: Path, split: Path, *more: str) -> Exposure:
    return exposure_of(run, read_config(RunConfig, [run / "config.yaml"], list(more)), split, ["train"])


def test_a_runs_own_splits_are_known(run: Path, tmp_path: Path) -> None:
    train, val = run / "data" / "train", run / "data" / "coco" / "val"
    assert known(run, train).held_out is False and known(run, val).held_out is True
    (tmp_path / "link").symlink_to(val)
    assert known(run, tmp_path / "link").held_out is True
    assert known(run, val).words == f"held out: {run} was not trained on this split"


def test_copies_of_what_was_read_are_known_by_their_bytes(run: Path, tmp_path: Path) -> None:
    assert known(run, shards(tmp_path / "copy", "b", "a")).words == f"not held out: {run} was trained on this split"
    part = known(run, shards(tmp_path / "part", "b", "x", "y"))
    assert part.held_out is False and "was trained on 1 of the 3 shards of this split" in part.words


def test_of_what_comes_from_elsewhere_nothing_is_claimed(run: Path, tmp_path: Path) -> None:
    other = known(run, shards(tmp_path / "other", "x"))
    assert other.held_out is None
    assert other.words == f"not known whether {run} was trained on this split: it is none of the run's own"
    without = known(run, shards(tmp_path / "bare"))  # no shard, so none that is the same
    assert without.held_out is None
    begun = known(run, run / "data" / "coco" / "val", f"--pretrain.init.vision={tmp_path}")
    assert begun.held_out is None and "began with weights that do not say" in begun.words
    assert known(run, run / "data" / "train", f"--pretrain.init.vision={tmp_path}").held_out is False


def test_of_an_index_that_cannot_be_read_nothing_is_claimed_and_nothing_fails(run: Path) -> None:
    train, val = run / "data" / "train", run / "data" / "coco" / "val"
    save(train / "index.json", "cut o")
    assert known(run, val).held_out is None and "an index of its data cannot be read" in known(run, val).words
    assert known(run, train).held_out is False  # for this none is wanted


def test_a_split_that_chose_the_weights_is_told_of_fine_tuned_models_alone(run: Path) -> None:
    val, test = run / "data" / "coco" / "val", shards(run / "data" / "coco" / "test", "d")
    chosen = ["--trim.validation.split=coco/val"]
    scored = TrainedRun(run, read_config(RunConfig, [TINY], [*chosen, "--trim.validation.every_steps=2"]), "coco/val")
    told = scored.exposure_to(val, fine_tuned=True)
    assert told.words == f"held out: {run} was not trained on this split; its weights were chosen by it"
    others = (scored.exposure, scored.exposure_to(test, fine_tuned=True))
    never = TrainedRun(run, read_config(RunConfig, [TINY], [*chosen, "--trim.validation.every_steps=0"]), "coco/val")
    assert not any(each.chose for each in (*others, never.exposure_to(val, fine_tuned=True)))


def test_an_export_is_known_by_the_run_that_it_lies_in_and_not_by_itself(run: Path, tmp_path: Path) -> None:
    val = run / "data" / "coco" / "val"
    within = TrainedExport.of(run / "stages" / "pretrain" / "export", str(val)).exposure
    alone = TrainedExport.of(tmp_path / "export", str(val)).exposure
    save(run / "config.yaml", "no_such_key: 1")
    older = TrainedExport.of(run / "stages" / "pretrain" / "export", str(val)).exposure
    assert older.held_out is None and "the config.yaml of its run cannot be read" in older.words
    assert within.held_out is True and alone.held_out is None
    assert "an export by itself does not say" in alone.words


def test_a_caption_has_names_and_no_paths() -> None:
    found = [
        Exposure(model=f"/here/{name}", held_out=known) for name, known in (("a", True), ("b", False), ("a", True))
    ]
    assert in_caption(found) == (
        "Held out: a was not trained on this split. Not held out: b was trained on this split."
    )
    assert len(in_words(found)) == 2
