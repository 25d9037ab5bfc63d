import io
import json
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.clean import CleanConfig, Cleaner
from data_prep.errors import UserError
from data_prep.index import load_index
from data_prep.job import Layout, ShardJob
from data_prep.targets import LocalTarget
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from tests.data_prep.samples import Picking, Plain, contents, picture, samples_in

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, split: Plain, **changes) -> dict:
    options = {"name": "plain", "fingerprint": "f", "layout": Layout(shard_samples=10), "workers": 1} | changes
    return write_split(split, folder, **options)


def job_of(split: Plain, folder: Path, fingerprint: str) -> ShardJob:
    return ShardJob(
        split=split,
        target=LocalTarget(folder),
        fingerprint=fingerprint,
        layout=Layout(shard_samples=10),
        cleaner=Cleaner.of(CleanConfig()),
    )


def test_same_split_gives_same_bytes_with_any_number_of_processes(tmp_path):
    write(tmp_path / "one", Plain())
    write(tmp_path / "two", Plain(), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {
        "00000.tar", "00001.tar", "00002.tar", "index.json", "samples.npy",
    }  # fmt: skip


def test_index_points_at_every_sample(tmp_path):
    account = write(tmp_path, Plain())
    index, rows = load_index(tmp_path)
    assert account == index["account"] == {"asked": 25, "written": 25, "skipped": {}, "skipped_keys": []}
    assert [shard["nsamples"] for shard in index["shardlist"]] == [10, 10, 5]
    assert rows[:, 2:4].tolist() == [[2, 1]] * 25
    number = 0
    for shard in index["shardlist"]:
        data = (tmp_path / shard["url"]).read_bytes()
        assert len(data) == shard["filesize"]
        for _ in range(shard["nsamples"]):
            begin, end = rows[number][:2]
            key = f"k{number:04d}"
            with tarfile.open(fileobj=io.BytesIO(data[begin:end] + bytes(1024))) as tar:
                members = b"".join(f"{info.name}\0".encode() + tar.extractfile(info).read() for info in tar)
                assert zlib.crc32(members) == rows[number, 4]
                assert tar.getnames() == [f"{key}.png", f"{key}.txt", f"{key}.json"]
                assert tar.extractfile(f"{key}.png").read() == picture(number)
                value = json.loads(tar.extractfile(f"{key}.json").read())
            assert (value["width"], value["height"], value["number"]) == (8, 8, number)
            number += 1
    assert number == 25


def test_plain_webdataset_reads_the_shards(tmp_path):
    write(tmp_path, Plain())
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"k{number:04d}" for number in range(25)]
    assert samples[7]["txt"] == b"picture 7"
    assert samples[7]["png"] == picture(7)


def test_bad_samples_are_skipped_and_counted_by_reason(tmp_path):
    account = write(tmp_path, Plain(bad=(3, 12), missing=(5,)))
    assert (account["asked"], account["written"]) == (25, 22)
    assert account["skipped"] == {"broken picture": 2, "picture missing": 1}
    assert account["skipped_keys"] == ["k0003", "k0005", "k0012"]
    assert verify_folder(tmp_path) == []


def test_a_shard_whose_samples_are_all_bad_is_left_out(tmp_path):
    write(tmp_path, Plain(bad=tuple(range(10))))
    assert [shard["url"] for shard in load_index(tmp_path)[0]["shardlist"]] == ["00001.tar", "00002.tar"]
    assert verify_folder(tmp_path) == []


def test_nothing_usable_is_the_users_error_and_leaves_no_index(tmp_path):
    with pytest.raises(UserError, match="no sample"):
        write(tmp_path, Plain(size=5, bad=tuple(range(5))))
    assert not (tmp_path / "index.json").exists()


def test_a_finished_split_is_not_touched_again(tmp_path):
    write(tmp_path, Plain())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    seen = []
    write(tmp_path, Plain(), progress=lambda done, total: seen.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert seen == [(25, 25)]


def test_shards_of_another_fingerprint_are_replaced(tmp_path):
    write(tmp_path / "new", Plain(size=12))
    write(tmp_path / "old", Plain(), fingerprint="other")
    write(tmp_path / "old", Plain(size=12))
    assert contents(tmp_path / "old") == contents(tmp_path / "new")


def test_unfinished_shards_of_another_fingerprint_are_replaced(tmp_path):
    write(tmp_path / "new", Plain())
    job_of(Plain(size=9), tmp_path / "old", fingerprint="g")(0)
    write(tmp_path / "old", Plain())
    assert contents(tmp_path / "old") == contents(tmp_path / "new")


def test_a_shard_that_was_damaged_in_between_is_written_again(tmp_path):
    write(tmp_path / "whole", Plain())
    job = job_of(Plain(), tmp_path / "cut", fingerprint="f")
    job(0)
    job(1)
    os.truncate(tmp_path / "cut/00001.tar", 1000)
    (tmp_path / "cut/.00002.tar.1.tmp").write_bytes(b"half")
    write(tmp_path / "cut", Plain())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_split_with_a_shortened_shard_is_written_again(tmp_path):
    write(tmp_path, Plain())
    before = contents(tmp_path)
    os.truncate(tmp_path / "00001.tar", 1000)
    write(tmp_path, Plain())
    assert contents(tmp_path) == before


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    write(tmp_path, Plain(bad=(3,)), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 25), (10, 25), (20, 25), (25, 25)]


def test_shards_end_before_they_exceed_their_bytes(tmp_path):
    split, limit = Plain(60, sides=(8, 150, 300)), 1 << 20
    account = write(tmp_path / "one", split, layout=Layout(shard_samples=30, shard_bytes=limit))
    assert account["written"] == 60
    shards = load_index(tmp_path / "one")[0]["shardlist"]
    assert max(shard["filesize"] for shard in shards) <= limit
    assert [shard["url"] for shard in shards][:3] == ["00000-0000.tar", "00000-0001.tar", "00000-0002.tar"]
    assert sum(shard["nsamples"] for shard in shards) == 60
    assert verify_folder(tmp_path / "one") == []
    write(tmp_path / "two", split, layout=Layout(shard_samples=30, shard_bytes=limit), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_sample_larger_than_a_shard_has_one_of_its_own(tmp_path):
    write(tmp_path, Plain(3, sides=(8, 700, 8)), layout=Layout(shard_bytes=1 << 20))
    shards = load_index(tmp_path)[0]["shardlist"]
    assert [shard["nsamples"] for shard in shards] == [1, 1, 1]
    assert shards[1]["filesize"] > 1 << 20


def test_shuffled_shards_have_the_same_samples_in_an_order_that_the_seed_decides(tmp_path):
    folders = {}
    for name, seed, workers in (("a", "1", 1), ("b", "1", 2), ("c", "2", 1)):
        folders[name] = tmp_path / name
        write(folders[name], Plain(), layout=Layout(shard_samples=10, order=seed), workers=workers)
    assert contents(folders["a"]) == contents(folders["b"])
    keys = {name: list(samples_in(folder)) for name, folder in folders.items()}
    plain = [f"k{number:04d}" for number in range(25)]
    assert sorted(keys["a"]) == sorted(keys["c"]) == plain
    assert len({tuple(keys["a"]), tuple(keys["c"]), tuple(plain)}) == 3
    assert verify_folder(folders["a"]) == []


def test_a_split_that_picks_is_asked_once_a_shard(tmp_path):
    split = Picking(25)
    write(tmp_path / "a", split, layout=Layout(shard_samples=10, order="1"))
    write(tmp_path / "b", Plain(25), layout=Layout(shard_samples=10, order="1"))
    assert [len(positions) for positions in split.asked] == [10, 10, 5]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_more_than_99999_shards_sort_by_number(tmp_path):
    job = ShardJob(
        split=Plain(1_000_001),
        target=LocalTarget(tmp_path),
        fingerprint="f",
        layout=Layout(shard_samples=1),
        cleaner=Cleaner.of(CleanConfig()),
    )
    for number in (0, 99_999, 100_000, 1_000_000):
        job(number)
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    assert names == ["0000000.tar", "0099999.tar", "0100000.tar", "1000000.tar"]
    assert [name[:-4] for name in names] == [f"{int(key[1:]):07d}" for key in samples_in(tmp_path)]


def test_a_split_that_gives_too_few_records_is_an_error_of_ours(tmp_path):
    class Short(Plain):
        def records(self, start, stop):
            yield from super().records(start, stop - 1)

    with pytest.raises(ValueError, match=r"shorter|for 10 positions"):
        write(tmp_path, Short())


@pytest.mark.parametrize("second", [4, 13])
def test_a_key_that_a_split_gives_twice_is_an_error_of_ours_in_whichever_shards(tmp_path, second):
    class Twice(Plain):
        def records(self, start, stop):
            for number in range(start, stop):
                yield from super().records(2, 3) if number == second else super().records(number, number + 1)

    with pytest.raises(ValueError, match="key='k0002' twice"):
        write(tmp_path, Twice())
    assert not (tmp_path / "index.json").exists()


def test_a_side_record_that_a_power_cut_left_half_written_is_not_trusted(tmp_path):
    job = job_of(Plain(), tmp_path / "cut", fingerprint="f")
    job(0)
    record = tmp_path / "cut/.parts/00000"
    whole = record.read_bytes()
    record.write_bytes(whole[:-64] + bytes(64))  # its length is right
    write(tmp_path / "cut", Plain())
    write(tmp_path / "whole", Plain())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_side_records_of_a_job_killed_at_its_very_end_are_removed(tmp_path):
    write(tmp_path, Plain())
    before = contents(tmp_path)
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts/00000").write_bytes(b"old")
    write(tmp_path, Plain())
    assert contents(tmp_path) == before


def test_samples_npy_is_plain_int64(tmp_path):
    write(tmp_path, Plain())
    rows = np.load(tmp_path / "samples.npy", allow_pickle=False)
    assert (rows.dtype, rows.shape) == (np.dtype("int64"), (25, 5))
