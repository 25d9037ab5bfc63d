"""The lists of samples that could not be used."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import UserError
from pipeline.data.batch import Skip
from pipeline.data.loader import LoaderConfig, train_loader
from pipeline.data.quarantine import Quarantine, count_reasons, read_quarantine
from pipeline.data.text import Tokenizer
from pipeline.process import Process
from tests.pipeline.data.samples import MakeSplit, spoil

CONFIG = LoaderConfig(height=12, width=16, streams=2, window=4, workers=0, max_tokens=8, max_bad_share=1.0)


def skip(number: int, reason: str = "broken", source: int = 0) -> Skip:
    return Skip("00000.tar", number, f"k{number}", reason, source)


def numbers(folder: Path) -> list[int]:
    return sorted(line["number"] for line in read_quarantine(folder))


def test_each_sample_is_written_once_with_all_that_is_known(tmp_path: Path) -> None:
    mine = Quarantine(tmp_path / "q", 0)
    assert list(read_quarantine(tmp_path / "q")) == [] and count_reasons(tmp_path / "q") == {}
    mine.add(3, [skip(1), skip(2, "truncated"), skip(1)], ["train"])
    mine.add(9, [skip(1), skip(1, source=1)], ["train", "more"])
    assert list(read_quarantine(tmp_path / "q"))[1] == {
        "source": "train", "shard": "00000.tar", "number": 2, "key": "k2", "reason": "truncated", "step": 3, "rank": 0,
    }  # fmt: skip
    assert mine.path.read_text().count("\n") == 3
    assert count_reasons(tmp_path / "q") == {"broken": 2, "truncated": 1}


def test_what_a_reason_says_of_one_sample_is_kept_and_makes_no_count_of_its_own(tmp_path: Path) -> None:
    reasons = [f"image too large: {side}x{side}" for side in range(3)] + ["shard is truncated: 00000.tar", "broken"]
    Quarantine(tmp_path, 0).add(0, [skip(number, reason) for number, reason in enumerate(reasons)], ["train"])
    assert count_reasons(tmp_path) == {"image too large": 3, "shard is truncated": 1, "broken": 1}
    assert [line["reason"] for line in read_quarantine(tmp_path)] == reasons


def test_truncated_shards_are_one_reason(make_split: MakeSplit, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = make_split(20)
    for shard in (1, 2, 3):
        os.truncate(path / f"0000{shard}.tar", 1)
    config = replace(CONFIG, streams=1, window=40)
    loader = train_loader(
        [(path, 1.0)], text="captions", unit="pair", config=config, tokenizer=tokenizer, seed=0, global_batch=4,
        process=Process(), steps=8, quarantine=tmp_path / "q",
    )  # fmt: skip
    for _ in loader:
        pass
    assert count_reasons(tmp_path / "q").keys() == loader.reasons.keys() == {"shard is truncated"}
    assert {line["reason"].partition(": ")[2] for line in read_quarantine(tmp_path / "q")} >= {"00001.tar", "00003.tar"}


def test_other_ranks_and_restarts_do_not_write_it_again(tmp_path: Path) -> None:
    one, two = Quarantine(tmp_path, 0), Quarantine(tmp_path, 1)
    one.add(0, [skip(1)], ["train"])
    two.add(1, [skip(1), skip(2)], ["train"])
    one.add(2, [skip(2), skip(3)], ["train"])
    again = Quarantine(tmp_path, 0)
    again.add(2, [skip(number) for number in range(1, 5)], ["train"])
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.iterdir())] == [3, 1]
    assert numbers(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_short_is_written_again_and_no_other_is_lost(tmp_path: Path, cut: int) -> None:
    first = Quarantine(tmp_path, 0)
    first.add(0, [skip(1), skip(2)], ["train"])
    first.path.write_bytes(first.path.read_bytes()[:-cut])
    assert numbers(tmp_path) == [1]
    Quarantine(tmp_path, 0).add(0, [skip(1), skip(2), skip(3)], ["train"])
    assert numbers(tmp_path) == [1, 2, 3]


def _write(folder: Path, rank: int) -> None:
    for number in range(200):
        Quarantine(folder, rank).add(number, [skip(number * 4 + rank)], ["train"])


def test_no_line_is_lost_where_several_ranks_write(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_write, args=(tmp_path, rank)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert numbers(tmp_path) == sorted(number * 4 + rank for number in range(200) for rank in range(2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_names_its_bad_samples_with_the_step(make_split: MakeSplit, tmp_path, tokenizer, workers: int) -> None:
    good, bad = make_split(12), make_split(12, name="bad")
    data = bytearray((bad / "00001.tar").read_bytes())
    data[512:600] = bytes(88)  # the first picture
    (bad / "00001.tar").write_bytes(data)
    loaders = [
        train_loader(
            [(good, 1.0), (bad, 1.0)],
            text="captions",
            unit="image",
            config=replace(CONFIG, workers=workers),
            tokenizer=tokenizer,
            seed=0,
            global_batch=4,
            process=Process(rank=rank, world_size=2),
            steps=12,
            quarantine=tmp_path / "q",
        )
        for rank in range(2)
    ]
    steps = [[bool(batch.skipped) for batch in loader] for loader in loaders]
    (line,) = read_quarantine(tmp_path / "q")
    assert (line["source"], line["shard"], line["number"], line["key"]) == (str(bad), "00001.tar", 0, "s5")
    assert steps[line["rank"]].index(True) == line["step"]
    assert sum(loader.bad for loader in loaders) == sum(map(sum, steps)) > 1  # once an epoch, and as often as drawn
    assert sum((loader.reasons for loader in loaders), start=type(loaders[0].reasons)()).total() == sum(map(sum, steps))
    assert json.loads((tmp_path / "q" / f"rank-{line['rank']}.jsonl").read_text()) == line


def test_a_batch_of_training_never_lacks_a_sample(make_split, tokenizer) -> None:
    """Where a range has one sample and that is bad, nothing stands in for it."""
    good, small = make_split(12), make_split(2, name="small")
    spoil(small, 0)
    loader = train_loader(
        [(good, 1.0), (small, 1.0)],
        text="statements",
        unit="image",
        config=CONFIG,
        tokenizer=tokenizer,
        seed=0,
        global_batch=4,
        process=Process(),
        steps=3,
    )
    with pytest.raises(UserError, match=r"none of 1 samples around 00000\.tar#0"):
        assert {len(batch) for batch in loader} == {4}


def test_where_nothing_is_good_a_run_stops_before_all_was_tried(make_split, tmp_path, tokenizer, monkeypatch) -> None:
    folder = make_split(40)
    for row in range(40):
        spoil(folder, row)
    for most, tried in ((7, 7), (1000, 20)):
        monkeypatch.setattr("pipeline.data.stream._MOST_STAND_INS", most)
        loader = train_loader(
            [(folder, 1.0)],
            text="statements",
            unit="image",
            config=CONFIG,
            tokenizer=tokenizer,
            seed=0,
            global_batch=2,
            process=Process(),
            steps=3,
        )
        with pytest.raises(UserError, match=f"none of {tried} samples around"):
            next(iter(loader))
