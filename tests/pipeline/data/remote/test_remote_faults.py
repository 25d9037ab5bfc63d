"""Damage, caches and processes: what goes wrong around shards behind a URL costs what is lost and no more."""

import gc
import io
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.index import load_index
from data_prep.make_index import index_folder
from pipeline.data.decode import BadSample
from pipeline.data.shards import ShardFolder
from pipeline.data.storage import StorageConfig
from tests.pipeline.data.remote.shards import CONFIG, contents, expect, outcome, sequence, storage, tars


@pytest.mark.parametrize("cached", [False, True])
def test_damaged_shards_lose_what_is_damaged_and_no_more(split, server, tmp_path, cached) -> None:
    os.truncate(split / "00001.tar", 3000)
    with open(split / "00003.tar", "ab") as file:
        file.write(b"more")
    data = bytearray((split / "00004.tar").read_bytes())
    data[100:108] = bytes(8)  # a header
    (split / "00004.tar").write_bytes(data)
    local, remote = ShardFolder(split), ShardFolder(server.url, storage(tmp_path, cached))
    remote.expect(range(30))

    found = [outcome(remote, row) for row in range(30)]
    assert found == [outcome(local, row) for row in range(30)]
    lost = [row for row, told in enumerate(found) if told != f"s{row}"]
    assert found[lost[0]] == "shard is truncated: 00001.tar" and 5 <= lost[0] < 9
    assert lost == [*range(lost[0], 10), 20]
    kept = {path.name.partition("-")[0] for path in (tmp_path / "cache" / "blocks").glob("*/*")}
    assert len(kept) == (4 if cached else 0)  # a shard of another size than it should have is not kept


def test_a_cache_that_is_changed_is_found_by_size(split, server, tmp_path) -> None:
    where = storage(tmp_path, True)
    expected = contents(ShardFolder(server.url, where))
    for number, path in enumerate(sorted((tmp_path / "cache" / "blocks").glob("*/*"))):
        if number % 2:
            os.truncate(path, number)
    assert contents(ShardFolder(server.url, where)) == expected


def test_a_cache_that_is_changed_is_found_by_checksum(split, server, tmp_path) -> None:
    where = storage(tmp_path, True, checksums=True)
    expected = contents(ShardFolder(server.url, where))
    for path in (tmp_path / "cache" / "blocks").glob("*/*"):
        size = path.stat().st_size
        path.write_bytes(os.urandom(size))
    assert contents(ShardFolder(server.url, where)) == expected == contents(ShardFolder(split))


@pytest.mark.parametrize("where", ["folder", "server", "cache"])
def test_a_sample_without_its_checksum_is_bad_and_no_other_is(split, server, tmp_path, where) -> None:
    expected = contents(ShardFolder(split))
    begin, end = (int(value) for value in load_index(split)[1][12, :2])
    data = bytearray((split / "00002.tar").read_bytes())
    place = data.rindex(b'"s12"', begin, end)  # its key in the JSON
    data[place + 1] ^= 1
    (split / "00002.tar").write_bytes(data)
    path = split if where == "folder" else server.url
    plain = ShardFolder(path, storage(tmp_path / "plain", where == "cache"))
    assert plain.read(12).fields != expected[12][2]
    folder = ShardFolder(path, storage(tmp_path, where == "cache", checksums=True))
    for row in range(30):
        if row != 12:
            sample = folder.read(row)
            assert (sample.key, sample.images, sample.fields) == expected[row]
    before = len(tars(server))
    for _ in range(2):
        with pytest.raises(BadSample, match=r"^has not the checksum that samples\.npy has for it$"):
            folder.read(12)
    assert len(tars(server)) - before <= (0 if where == "folder" else 8)


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_dialect_of_tar_has_the_checksums_that_its_index_has(tmp_path, layout) -> None:
    key = "folder/" + "ä" * 90
    (tmp_path / "split").mkdir()
    with tarfile.open(tmp_path / "split" / "0.tar", "w", format=layout) as tar:
        png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
        for name, data in ((f"{key}.png", png), ("README", b"no sample"), (f"{key}.TXT", b"c"), ("b.png", png)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_folder(tmp_path / "split")
    folder = ShardFolder(tmp_path / "split", storage(tmp_path, False, checksums=True))
    assert [folder.read(0).key, folder.read(1).key] == [key, "b"]


def test_a_small_cache_is_slower_and_not_wrong(split, server, tmp_path) -> None:
    where = storage(tmp_path, True, cache_gib=5 * 4096 / 2**30)
    assert contents(ShardFolder(server.url, where)) == contents(ShardFolder(split))
    blocks = [path.stat().st_size for path in (tmp_path / "cache" / "blocks").glob("*/*")]
    assert 0 < sum(blocks) <= 5 * 4096


def test_jobs_with_other_blocks_do_not_take_each_others(split, server, tmp_path, monkeypatch) -> None:
    size = (split / "00000.tar").stat().st_size
    where, expected = storage(tmp_path, True), contents(ShardFolder(split))
    for block in (size // 2, 3 * size // 4, size // 4):  # the second one has as many bytes with the first two
        monkeypatch.setattr("pipeline.data.cached_reader.BLOCK", block)
        assert contents(ShardFolder(server.url, where)) == expected


@pytest.mark.parametrize("cached", [False, True])
def test_a_reader_that_is_not_used_any_more_takes_its_threads_and_what_they_fetched_with_it(
    server, tmp_path, cached
) -> None:
    before = threading.active_count()
    folder = ShardFolder(server.url, storage(tmp_path, cached))
    expect(folder, range(30))
    reader = weakref.ref(folder.reader)
    assert folder.read(3).key == "s3" and threading.active_count() > before
    del folder
    gc.collect()
    assert reader() is None
    end = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_page_that_states_no_length_is_not_kept(split, server, tmp_path) -> None:
    where, expected = storage(tmp_path, True), contents(ShardFolder(split))
    folder = ShardFolder(server.url, where)
    server.fault = lambda number, name: "chunked page"
    with pytest.raises(UserError, match="more than the"):
        folder.read(0)
    server.fault = lambda number, name: None
    assert contents(ShardFolder(server.url, where)) == expected


def test_a_worker_that_ends_leaves_the_fetched_index_to_the_others(server) -> None:
    folder = ShardFolder(server.url)
    child = os.fork()
    if not child:
        del folder
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    place = folder.path
    assert folder.digest and ShardFolder(place).read(3).key == "s3"
    del folder
    gc.collect()
    assert not place.exists()


def test_another_index_at_the_same_url_does_not_take_the_place_of_one_in_use(
    split, server, tmp_path, make_split
) -> None:
    where = storage(tmp_path, True)
    first = ShardFolder(server.url, where)
    other = make_split(25, shard_samples=7, name="other")
    for path in split.iterdir():
        path.unlink()
    for path in other.iterdir():
        shutil.copy(path, split)
    second = ShardFolder(server.url, where)
    assert second.digest == ShardFolder(other).digest != first.digest
    assert (len(first), len(second)) == (30, 25)


@pytest.mark.parametrize("key", ["cache_gib", "read_ahead_mib", "silence_seconds", "give_up_seconds"])
def test_settings_without_an_end_are_the_users_to_mend(key: str) -> None:
    with pytest.raises(UserError, match=rf"loader\.{key}=inf must be at most 1,000,000"):
        StorageConfig(**{key: float("inf")})
    assert StorageConfig(**{key: 1e6}).cache_bytes > 0


@pytest.mark.parametrize("cache_dir", ["file", "file/in", "s3://bucket/cache"])
def test_a_cache_that_cannot_be_is_the_users_to_mend(server, tmp_path, monkeypatch, cache_dir) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"loader\.cache_dir"):
        ShardFolder(server.url, StorageConfig(cache_dir=cache_dir))
    assert not (tmp_path / "s3:").exists()


def test_a_shard_that_is_replaced_under_its_index_is_told(split, server, tmp_path, caplog) -> None:
    folder = ShardFolder(server.url, storage(tmp_path, True, checksums=True))
    assert folder.read(3).key == "s3"
    other = (split / "00001.tar").read_bytes()
    size = (split / "00000.tar").stat().st_size
    (split / "00000.tar").write_bytes((other + bytes(size))[:size])
    assert folder.read(3).key == "s3"  # from the cache
    shutil.rmtree(tmp_path / "cache" / "blocks")
    for opened in (folder, ShardFolder(server.url, storage(tmp_path, True, checksums=True))):
        with pytest.raises(BadSample, match="not the checksum"):
            opened.read(3)
    (split / "00000.tar").write_bytes(other + b"more")
    ShardFolder(server.url, storage(tmp_path, False)).read(9)
    assert "where the index says" not in caplog.text
    outcome(ShardFolder(server.url, storage(tmp_path, False)), 3)
    assert f"00000.tar has {len(other) + 4} bytes where the index says {size}" in caplog.text


def test_new_data_at_the_same_url_is_not_mixed_with_the_old(split, server, tmp_path, make_split) -> None:
    where = storage(tmp_path, True)
    contents(ShardFolder(server.url, where))
    other = make_split(25, shard_samples=7, name="other")
    for path in split.iterdir():
        path.unlink()
    for path in other.iterdir():
        shutil.copy(path, split)
    assert contents(ShardFolder(server.url, where)) == contents(ShardFolder(other))


def test_stores_of_fsspec(split, tmp_path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(f"{split}/", "/remote-shards/train/", recursive=True)
    try:
        for cached in (False, True):
            folder = ShardFolder("memory://remote-shards/train", storage(tmp_path, cached))
            assert contents(folder) == contents(ShardFolder(split))
    finally:
        fs.rm("/remote-shards", recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_an_s3_server(split, s3, tmp_path, training, workers, cached) -> None:
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.put(f"{split}/", s3 + "/", recursive=True)
    config = replace(CONFIG, workers=workers, cache_dir=str(tmp_path / "cache") if cached else None)
    assert sequence(training(s3, config)) == sequence(training(split))
    fs.pipe_file(f"{s3}/00001.tar", (split / "00001.tar").read_bytes()[:3000])
    folder = ShardFolder(s3, storage(tmp_path / "other", cached))
    with pytest.raises(BadSample, match=r"truncated: 00001\.tar"):
        folder.read(9)
    assert folder.read(29).key == "s29"
    with pytest.raises(UserError, match="is not there"):
        ShardFolder("s3://shards/nothing", storage(tmp_path, cached))


@pytest.mark.slow
def test_a_fork_leaves_the_connections_to_a_store_alone(split, s3, tmp_path) -> None:
    fsspec.filesystem("s3", skip_instance_cache=True).put(f"{split}/", s3 + "/", recursive=True)
    folder = ShardFolder(s3, storage(tmp_path, False, silence_seconds=5.0, give_up_seconds=20.0))
    assert folder.read(0).key == "s0"
    for _ in range(3):
        child = os.fork()
        if not child:
            good = [folder.read(row).key for row in range(5)] == [f"s{row}" for row in range(5)]
            gc.collect()
            os._exit(0 if good and not folder.reader.counts.failures else 1)
        assert folder.read(9).key == "s9"
        assert os.waitpid(child, 0)[1] == 0
    assert contents(folder) == contents(ShardFolder(split)) and not folder.reader.counts.failures


def _read_for_ever(url: str, where: StorageConfig, ready) -> None:
    folder = ShardFolder(url, where)
    ready.set()
    while True:
        contents(folder)


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_job_that_is_killed_leaves_the_cache_to_the_others(split, server, tmp_path, rounds) -> None:
    where = storage(tmp_path, True, cache_gib=12 * 4096 / 2**30)
    server.fault = lambda number, name: "slow" if number % 3 else None
    context, expected = multiprocessing.get_context("fork"), contents(ShardFolder(split))
    for _ in range(rounds):
        ready = context.Event()
        victim = context.Process(target=_read_for_ever, args=(server.url, where, ready), daemon=True)
        victim.start()
        assert ready.wait(20)
        time.sleep(0.05)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        assert contents(ShardFolder(server.url, where)) == expected


def test_a_stopped_process_does_not_stop_the_others(split, server, tmp_path) -> None:
    where = storage(tmp_path, True)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    server.fault = lambda number, name: "slow"
    stopped = context.Process(target=_read_for_ever, args=(server.url, where, ready), daemon=True)
    stopped.start()
    assert ready.wait(20)
    time.sleep(0.02)
    os.kill(stopped.pid, signal.SIGSTOP)
    server.fault = lambda number, name: None
    began = time.monotonic()
    try:
        assert contents(ShardFolder(server.url, where)) == contents(ShardFolder(split))
        assert time.monotonic() - began < 5
    finally:
        stopped.kill()
        stopped.join()


def test_shards_of_others_are_read_behind_a_url_too(tmp_path, server, split) -> None:
    for name in ("index.json", "samples.npy"):
        (split / name).unlink()
    index_folder(split)
    assert contents(ShardFolder(server.url, storage(tmp_path, False))) == contents(ShardFolder(split))


def _damage(data: bytearray, rng: np.random.Generator) -> None:
    """Changes, cuts, takes out or puts in bytes at random."""
    if not data:
        return
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    match rng.integers(4):
        case 0:
            data[place : place + length] = rng.bytes(len(data[place : place + length]))
        case 1:
            del data[place:]
        case 2:
            del data[place : place + length]
        case _:
            data[place:place] = rng.bytes(length)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 300))])
def test_fuzzed_shards_give_what_they_give_in_a_folder(split: Path, tmp_path: Path, seed: int) -> None:
    rng, whole = np.random.default_rng(seed), contents(ShardFolder(split))
    for path in split.glob("*.tar"):
        data = bytearray(path.read_bytes())
        for _ in range(rng.integers(3)):
            _damage(data, rng)
        path.write_bytes(data)

    def outcomes(folder: ShardFolder) -> list[object]:
        folder.expect(range(len(folder)))
        return [outcome(folder, row) for row in range(len(folder))]

    fs, place = fsspec.filesystem("memory"), f"/fuzz-{seed}"
    fs.put(f"{split}/", f"{place}/", recursive=True)
    try:
        expected = outcomes(ShardFolder(split))
        for cached in (False, True, True):
            assert outcomes(ShardFolder(f"memory:/{place}", storage(tmp_path, cached))) == expected
        checked = outcomes(ShardFolder(f"memory:/{place}", storage(tmp_path, True, checksums=True)))
        folder = ShardFolder(split, storage(tmp_path, False, checksums=True))
        assert checked == outcomes(folder)
        for row, one in enumerate(checked):
            if one == f"s{row}":
                assert (folder.read(row).images, folder.read(row).fields) == whole[row][1:]
            else:
                assert re.search("checksum|truncated|does not or cannot have", str(one))
    finally:
        fs.rm(place, recursive=True)
