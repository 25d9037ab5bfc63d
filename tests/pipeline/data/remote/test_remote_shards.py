"""Shards behind a URL give what the same shards give in a local folder, whatever the server does."""

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from data_prep.errors import UserError
from pipeline.data import shards
from pipeline.data.decode import BadSample
from pipeline.data.loader import eval_loader
from pipeline.data.shards import ShardFolder
from pipeline.process import Process
from tests.data_prep.server import Server
from tests.pipeline.data.remote.shards import CONFIG, contents, expect, sequence, storage, tars


@pytest.mark.parametrize("cached", [False, True])
def test_a_url_is_a_folder(split: Path, server: Server, tmp_path: Path, cached: bool) -> None:
    local, remote = ShardFolder(split), ShardFolder(server.url, storage(tmp_path, cached))
    assert remote.digest == local.digest and len(remote) == 30
    assert [name for name, _ in server.requests] == ["index.json", "samples.npy"]
    assert contents(remote, expect) == contents(local)
    assert remote.reader.ahead == 0 and remote.reader.counts.misses == 0
    total = sum(path.stat().st_size for path in split.glob("*.tar"))
    assert remote.reader.counts.fetched_bytes <= total  # nothing came twice
    assert len(tars(server)) <= 6 if not cached else len(set(tars(server))) == 6  # neighbours come at once
    assert pickle.loads(pickle.dumps(remote)).read(3).key == "s3"
    remote.close()
    assert remote.read(29).key == "s29"


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_announced_comes_once_however_often_it_is_read(server, tmp_path, cached) -> None:
    folder = ShardFolder(server.url, storage(tmp_path, cached))
    expect(folder, [3, 3, 4, 28])
    assert [folder.read(row).key for row in (3, 4, 3)] == ["s3", "s4", "s3"]
    assert folder.reader.ahead > 0 and len(tars(server)) == 2
    folder.read(28)
    assert folder.reader.ahead == 0
    folder.expect([9])
    folder.reader.forget()
    assert folder.reader.ahead == 0 and folder.read(9).key == "s9"


def test_a_second_user_of_the_cache_asks_for_nothing_but_the_index(server: Server, tmp_path: Path) -> None:
    first = contents(ShardFolder(server.url, storage(tmp_path, True)))
    before = len(server.requests)
    assert contents(ShardFolder(server.url, storage(tmp_path, True))) == first
    assert [name for name, _ in server.requests[before:]] == ["index.json"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("ahead", [0.0, 0.01, 64.0])
def test_training_from_a_url_is_the_same(split, server, tmp_path, training, workers, cached, ahead) -> None:
    cache = str(tmp_path / "cache") if cached else None
    config = replace(CONFIG, workers=workers, cache_dir=cache, read_ahead_mib=ahead)
    expected = sequence(training(split))
    assert sequence(training(server.url, config)) == expected
    assert sequence(training(server.url, config, start_step=5)) == expected[20:]


@pytest.mark.parametrize("cached", [False, True])
def test_evaluation_from_a_url_is_the_same(split, server, tmp_path, tokenizer, cached) -> None:
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache") if cached else None)
    options = {"text": "statements", "unit": "pair", "config": config, "tokenizer": tokenizer, "batch_size": 7}
    for rank in range(2):
        process = Process(rank=rank, world_size=2)
        found = [sequence(eval_loader(source, process=process, **options)) for source in (server.url, split)]
        assert found[0] == found[1] and len(found[0]) == 45


def test_steps_in_any_order_are_the_same(split, server, training) -> None:
    local, remote = (training(source).dataset.inner for source in (split, server.url))
    for step in (4, 0, 1, 8, 2):
        assert remote[step].keys == local[step].keys
        assert (remote[step].pixels == local[step].pixels).all()


FAULTS = [
    "vanish", "drop", "stall", "html", "500", "moved", "429", "no range", "gzip", "slow", "other range", "no length",
    "impossible range",
]  # fmt: skip


@pytest.mark.parametrize("faults", [FAULTS[:7], FAULTS[7:]])
@pytest.mark.parametrize("cached", [False, True])
def test_a_bad_server_costs_time_and_nothing_else(split, server, tmp_path, training, cached, faults) -> None:
    turns = iter(faults)
    server.fault = lambda number, name: next(turns, None) if number % 2 else None
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache") if cached else None)
    loader = training(server.url, config)
    assert sequence(loader) == sequence(training(split))
    assert loader.bad == 0 and next(turns, None) is None


@pytest.mark.parametrize("fault", ["stall", "vanish", "html", "404"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_a_server_that_is_gone_stops_the_run_in_one_line(server, tmp_path, training, fault, workers, cached) -> None:
    cache = str(tmp_path / "cache") if cached else None
    config = replace(CONFIG, workers=workers, cache_dir=cache, silence_seconds=0.1, give_up_seconds=0.4)
    loader = training(server.url, config)
    server.fault = lambda number, name: fault
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"{server.url}/0000\d\.tar") as error:
        sequence(loader)
    assert time.monotonic() - began < 10 and "\n" not in str(error.value)


@pytest.mark.parametrize("cached", [False, True])
def test_reading_all_in_order_keeps_nothing(split, server, tmp_path, monkeypatch, cached) -> None:
    monkeypatch.setattr(shards, "_AHEAD", 4)
    remote = ShardFolder(server.url, storage(tmp_path, cached))
    work, sizes, keys = remote.reader._work(), [], []
    for row, sample in remote.in_order():
        assert row == len(keys)
        keys.append(sample.key)
        sizes.append(len(work.announced))
    assert keys == [f"s{row}" for row in range(30)]
    assert max(sizes) == 7 and sizes[-1] == work.ahead == len(work.flying) == 0
    assert (work.counts.hits + work.counts.misses, remote.reader._process) == (30 if not cached else ANY, None)


def test_reading_all_in_order_tells_which_are_bad(split) -> None:
    os.truncate(split / "00005.tar", 100)
    found = list(ShardFolder(split).in_order())
    assert [row for row, _ in found] == list(range(30))
    assert [isinstance(sample, BadSample) for _, sample in found] == [False] * 25 + [True] * 5
