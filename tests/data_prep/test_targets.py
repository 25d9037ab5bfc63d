"""Where shards go besides a local folder."""

import errno
import functools
import importlib.util
import json
import multiprocessing
import os
from pathlib import Path

import fsspec
import pytest

from data_prep import targets
from data_prep.clean import CleanConfig, Cleaner
from data_prep.errors import DiskFull, NoAnswer, UserError
from data_prep.executors import Processes
from data_prep.job import Layout, ShardJob
from data_prep.sources import SourceConfig, prepare
from data_prep.targets import LocalTarget, StoreTarget, open_target
from data_prep.writer import write_split
from launch.cli import main
from tests.data_prep.samples import Plain, contents

write = functools.partial(write_split, name="x", fingerprint="f", layout=Layout(shard_samples=10))


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield "memory://bucket/deep"
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


def fetched(url: str, folder: Path) -> dict[str, str]:
    """What a store holds, as `contents` has it."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.get(root.rstrip("/") + "/", f"{folder}/", recursive=True)
    return contents(folder)


def test_a_store_gets_the_bytes_that_a_folder_gets(memory, tmp_path):
    account = write(Plain(bad=(3,)), tmp_path / "local", workers=1)
    assert write(Plain(bad=(3,)), f"{memory}/a") == account
    assert fetched(f"{memory}/a", tmp_path / "got") == contents(tmp_path / "local")
    assert write(Plain(bad=(3,)), f"{memory}/a", progress=None) == account  # finished: taken from the index


@pytest.mark.parametrize("prefix", ["local://", "file://"])
def test_local_urls_are_local_folders(tmp_path, prefix):
    write(Plain(), f"{prefix}{tmp_path}/a")
    write(Plain(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_store_keeps_what_is_finished_and_drops_what_is_foreign(memory, tmp_path):
    target = open_target(memory)
    job = ShardJob(
        split=Plain(),
        target=target,
        fingerprint="f",
        layout=Layout(shard_samples=10),
        cleaner=Cleaner.of(CleanConfig()),
    )
    job(1)
    fs = fsspec.filesystem("memory")
    made = fs.info("/bucket/deep/00001.tar")["created"]
    fs.pipe_file("/bucket/deep/00007.tar", b"of another job")
    write(Plain(), memory)
    assert fs.info("/bucket/deep/00001.tar")["created"] == made
    write(Plain(), tmp_path / "local", workers=1)
    assert fetched(memory, tmp_path / "got") == contents(tmp_path / "local")


def test_a_whole_data_set_goes_into_a_store_and_is_known_to_be_there(memory, tmp_path):
    config = SourceConfig(sizes={"train": 30, "val": 4, "test": 0, "unseen": 0}, shard_samples=10)
    account = prepare(config, memory)
    assert prepare(config, tmp_path / "local") == account
    assert fetched(memory, tmp_path / "got") == contents(tmp_path / "local")
    seen = []
    prepare(config, memory, lambda done, total: seen.append((done, total)))
    assert seen == [(34, 34)]


def test_memory_of_this_process_is_out_of_reach_for_others(memory):
    with pytest.raises(UserError, match="workers=1"):
        write(Plain(), memory, workers=2)


def test_nothing_of_an_upload_has_a_name_that_a_killed_process_would_leave(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = open_target(memory)
    with target.write("a") as file:
        file.write(b"whole")
        file.flush()
        assert list(tmp_path.iterdir()) == []
    assert target.read("a") == b"whole"


@pytest.mark.parametrize(
    ("url", "said"),
    [("nosuch://x/y", "nosuch"), ("simplecache::s3://a/b", "chained"), ("memory://x", None)],
)
def test_kinds_of_urls(url, said):
    if said is None:
        assert isinstance(open_target(url), StoreTarget)
        return
    with pytest.raises(UserError, match=said):
        open_target(url)


@pytest.mark.parametrize("url", ["s3://KEY:hunter22@bucket/x", "https://h/x?token=hunter22"])
def test_a_password_in_a_url_is_refused_in_one_line_that_does_not_repeat_it(url):
    with pytest.raises(UserError, match=r"has a password or a token in it.*AWS_ACCESS_KEY_ID") as caught:
        open_target(url)
    assert "hunter22" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_store_that_refuses_is_one_line_for_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "_PAUSES", ())
    with pytest.raises(UserError, match="cannot be used"):
        write(Plain(), "ftp://127.0.0.1:9/folder", workers=1)  # nobody listens there


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (OSError(errno.EDQUOT, "the quota is used up"), DiskFull),
        (PermissionError("not yours"), UserError),
        (TimeoutError("no answer came"), NoAnswer),
    ],
)
def test_a_full_store_one_that_refuses_and_one_that_does_not_answer_are_told_apart(memory, monkeypatch, said, kind):
    def fails(*given, **named):
        raise said

    monkeypatch.setattr(targets, "_PAUSES", ())
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fails)
    with pytest.raises(kind, match=str(said.args[-1])) as caught:
        StoreTarget(memory).read("any")
    assert type(caught.value) is kind


def test_a_mistake_in_code_is_not_told_as_the_stores(memory, monkeypatch):
    def wrong(*given, **named):
        raise TypeError("unexpected argument")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", wrong)
    with pytest.raises(TypeError, match="unexpected argument"):
        StoreTarget(memory).read("any")


def test_half_written_files_of_a_killed_writer_are_removed(tmp_path):
    for name in (".00000.tar.1.ab.tmp", ".parts/.00000.1.ab.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    write(Plain(), tmp_path, workers=1)
    write(Plain(), tmp_path / "other", workers=1)
    assert not list(tmp_path.glob(".*"))


def test_targets_travel_to_other_processes(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(str, (LocalTarget(tmp_path),)) == str(tmp_path)
        assert pool.apply(str, (open_target("s3://a/b") if _has("s3fs") else open_target("memory://a"),))


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_an_s3_server_gets_the_bytes_that_a_folder_gets_from_several_processes(s3, tmp_path):
    local = write(Plain(60), tmp_path / "local", workers=1)
    assert write(Plain(60), s3, executor=Processes(2)) == local
    assert fetched(s3, tmp_path / "got") == contents(tmp_path / "local")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    before = {entry["Key"]: entry["LastModified"] for entry in fs.ls("shards/train", detail=True)}
    fs.rm("shards/train/index.json")
    fs.rm("shards/train/00003.tar")
    write(Plain(60), s3, workers=1)
    fs.invalidate_cache()
    assert set(before) == {entry["Key"] for entry in fs.ls("shards/train", detail=True)}
    index = json.loads(fs.cat_file("shards/train/index.json"))
    assert index["account"]["written"] == 60


@pytest.mark.timeout(300)
def test_shards_at_an_s3_server_are_verified_where_they_lie(s3):
    write(Plain(), s3, workers=1)
    assert main(["verify", s3]) == 0
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("shards/train/00001.tar", b"no tar")
    assert main(["verify", s3]) == 1


def test_a_bucket_that_is_not_there_is_one_line_for_the_user(s3):
    with pytest.raises(UserError, match="no-such-bucket"):
        write(Plain(), "s3://no-such-bucket/x", workers=1)
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1")
