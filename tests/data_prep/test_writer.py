import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
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
from tests.data_prep.samples import Plain, contents, picture

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
    assert rows[:, 2:].tolist() == [[2, 1]] * 25
    number = 0
    for shard in index["shardlist"]:
        data = (tmp_path / shard["url"]).read_bytes()
        assert len(data) == shard["filesize"]
        for _ in range(shard["nsamples"]):
            begin, end = rows[number][:2]
            key = f"k{number:04d}"
            with tarfile.open(fileobj=io.BytesIO(data[begin:end] + bytes(1024))) as tar:
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


SCRIPT = """
import sys, time
from pathlib import Path
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Plain
class Slow(Plain):
    def records(self, start, stop):
        time.sleep(float(sys.argv[2]))
        yield from super().records(start, stop)
write_split(Slow(60), Path(sys.argv[1]), name="x", fingerprint="f", layout=Layout(shard_samples=5), workers=1)
"""


def run_script(script: str, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )


def test_killed_and_started_again_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    write_split(Plain(60), tmp_path / "whole", name="x", fingerprint="f", layout=Layout(shard_samples=5), workers=1)
    killed = run_script(SCRIPT, str(tmp_path / "killed"), "0.05")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("0*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("00000.tar")}
    assert kept
    assert not (tmp_path / "killed/index.json").exists()
    again = run_script(SCRIPT, str(tmp_path / "killed"), "0")
    assert (again.wait(60), again.stderr.read()) == (0, "")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was finished was kept


FULL_DISK = """
import sys
from pathlib import Path
from data_prep.errors import UserError
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Plain
try:
    # The third shard has large pictures and does not fit.
    sides = (8,) * 20 + (128,) * 5
    write_split(
        Plain(25, sides=sides), Path(sys.argv[1]), name="x", fingerprint="f", layout=Layout(shard_samples=10),
        workers=int(sys.argv[2]),
    )
except UserError as error:
    sys.stderr.write(str(error))
    sys.exit(2)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_one_clear_line_and_leaves_only_whole_shards(tmp_path, workers):
    # A limit on the file size is what an unprivileged test can have of a full disk.
    limit = 100_000
    full = run_script(
        FULL_DISK,
        str(tmp_path),
        workers,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, message = full.communicate(timeout=60)
    assert full.returncode == 2, message
    assert "free some space" in message
    assert len(message.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".parts", "00000.tar", "00001.tar"]
    sides = (8,) * 20 + (128,) * 5
    write(tmp_path, Plain(25, sides=sides))
    assert verify_folder(tmp_path) == []


def test_workers_of_a_killed_parent_end(tmp_path):
    script = """
import sys, time
from pathlib import Path
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Forever
write_split(Forever(sys.argv[1]), Path(sys.argv[1]), name="x", fingerprint="f", layout=Layout(shard_samples=1), workers=2)
"""
    parent = run_script(script, str(tmp_path))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    parent.kill()
    parent.communicate()
    assert len(workers) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_samples_npy_is_plain_int64(tmp_path):
    write(tmp_path, Plain())
    rows = np.load(tmp_path / "samples.npy", allow_pickle=False)
    assert (rows.dtype, rows.shape) == (np.dtype("int64"), (25, 4))
