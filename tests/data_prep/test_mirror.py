"""Shards behind a URL as a source: their indexes are copied."""

import json
import os
import signal
import time
from pathlib import Path

import fsspec
import pytest

from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.index import load_index
from data_prep.job import Layout
from data_prep.mirror import mirror_index, remote_url
from data_prep.remote import RemoteFolder
from data_prep.sources import SourceConfig, prepare, source_module
from data_prep.sources.shards import _remote
from data_prep.verify import find_splits
from data_prep.writer import write_split
from tests.data_prep.samples import Plain
from tests.data_prep.server import serving


def shards(folder: Path, count: int = 30) -> Path:
    layout = Layout(shard_samples=10)
    write_split(Plain(count), folder, name="x", fingerprint=str(count), layout=layout, workers=1)
    return folder


@pytest.fixture(autouse=True)
def _plans_anew() -> None:
    _remote.cache_clear()


@pytest.fixture
def memory(tmp_path: Path):
    shards(tmp_path / "made" / "train")
    shards(tmp_path / "made" / "coco" / "val", 20)
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/made/", "/mirror-test/", recursive=True)
    yield "memory://mirror-test"
    fs.rm("/mirror-test", recursive=True)


def test_a_store_is_listed_and_its_indexes_are_copied(memory: str, tmp_path: Path) -> None:
    account = prepare(SourceConfig(name="shards", root=memory), tmp_path / "run")
    assert account["written"] == 50
    for name, rows in (("train", 30), ("coco/val", 20)):
        copy = tmp_path / "run" / name
        assert sorted(path.name for path in copy.iterdir()) == ["index.json", "remote.json", "samples.npy"]
        assert sha256_file(copy / "index.json") == sha256_file(tmp_path / "made" / name / "index.json")
        assert len(load_index(copy)[1]) == rows and remote_url(copy) == f"{memory}/{name}"
    before = (tmp_path / "run/train/samples.npy").stat().st_ino
    prepare(SourceConfig(name="shards", root=memory), tmp_path / "run")
    assert (tmp_path / "run/train/samples.npy").stat().st_ino == before  # not copied again


def test_what_is_hidden_in_a_store_is_no_split(memory: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in (".download-train", "coco/.val", ".."):
        fs.pipe_file(f"/mirror-test/{name}/index.json", b"{}")
    assert list(prepare(SourceConfig(name="shards", root=memory), tmp_path / "run")["splits"]) == ["coco/val", "train"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "run"]


def test_named_splits_alone_are_used(memory: str, tmp_path: Path) -> None:
    config = SourceConfig(name="shards", root=memory, splits=("train",))
    assert list(prepare(config, tmp_path / "run")["splits"]) == ["train"]
    local = SourceConfig(name="shards", root=str(tmp_path / "made"), splits=("coco/val",))
    assert list(prepare(local, tmp_path / "other")["splits"]) == ["coco/val"]
    with pytest.raises(UserError, match=r"data\.splits names 'x', but .* has coco/val, train"):
        prepare(SourceConfig(name="shards", root=str(tmp_path / "made"), splits=("x",)), tmp_path / "third")


def test_a_copy_and_a_link_take_each_others_place_and_nobodys_shards_are_lost(memory: str, tmp_path: Path) -> None:
    run, made = tmp_path / "run", tmp_path / "made"
    for root in (memory, str(made), memory):
        prepare(SourceConfig(name="shards", root=root), run)
    assert not (run / "train").is_symlink() and len(list((made / "train").glob("*.tar"))) == 3
    shards(tmp_path / "full" / "train")
    with pytest.raises(UserError, match="holds other shards"):
        prepare(SourceConfig(name="shards", root=memory), tmp_path / "full")


@pytest.mark.parametrize("behind_a_url", [False, True])
def test_a_folder_that_the_user_has_put_elsewhere_by_a_link_stays_there(
    memory: str, tmp_path: Path, behind_a_url: bool
) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    (disk / "outer").mkdir(parents=True)
    out.symlink_to(disk, target_is_directory=True)
    (disk / "coco").symlink_to(disk / "outer", target_is_directory=True)
    for _ in range(2):
        prepare(SourceConfig(name="shards", root=memory if behind_a_url else str(tmp_path / "made")), out)
        assert out.is_symlink() and (disk / "coco").is_symlink()
        assert len(load_index(disk / "outer" / "val")[1]) == 20 and len(load_index(disk / "train")[1]) == 30


def test_an_index_that_changes_is_copied_anew(tmp_path: Path) -> None:
    made = tmp_path / "made"
    shards(made / "train")
    with serving(made) as server:
        config = SourceConfig(name="shards", root=server.url, splits=("train",))
        prepare(config, tmp_path / "run")
        first = source_module("shards").plan(config)["train"].identity
        for path in (made / "train").iterdir():
            path.unlink()
        shards(made / "train", 20)
        _remote.cache_clear()
        assert source_module("shards").plan(config)["train"].identity != first
        prepare(config, tmp_path / "run")
        assert len(load_index(tmp_path / "run" / "train")[1]) == 20


def test_what_a_killed_copy_left_is_removed(memory: str, tmp_path: Path) -> None:
    left = tmp_path / "run" / "train" / ".samples.npy.1.ab.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(1000))
    mirror_index(RemoteFolder(f"{memory}/train"), left.parent)
    assert not left.exists() and len(load_index(left.parent)[1]) == 30


def test_a_copy_that_was_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    shards(tmp_path / "made" / "train")
    with serving(tmp_path / "made") as server:
        config = SourceConfig(name="shards", root=server.url, splits=("train",))
        server.fault = lambda number, name: "stall" if name.endswith("samples.npy") else None
        child = os.fork()
        if not child:
            prepare(config, tmp_path / "run")
            os._exit(0)
        end = time.monotonic() + 20
        while not list((tmp_path / "run" / "train").glob(".samples.npy.*")):
            assert time.monotonic() < end
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        server.fault = lambda number, name: None
        prepare(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "train").iterdir()) == [
        "index.json", "remote.json", "samples.npy",
    ]  # fmt: skip


def test_a_side_file_of_another_index_is_refused(tmp_path: Path) -> None:
    made = shards(tmp_path / "made" / "train")
    (made / "samples.npy").write_bytes(b"short")
    with serving(tmp_path / "made") as server:
        config = SourceConfig(name="shards", root=server.url, splits=("train",))
        with pytest.raises(UserError, match=r"samples\.npy has 5 bytes where \d+ are wanted"):
            prepare(config, tmp_path / "run")
    assert not (tmp_path / "run" / "train" / "index.json").exists()


def test_a_store_without_an_index_is_refused(memory: str) -> None:
    with pytest.raises(UserError, match=r"index\.json"):
        source_module("shards").plan(SourceConfig(name="shards", root=f"{memory}/coco/val"))
    with pytest.raises(UserError, match=r"nothing.* is not there|shards needs a folder"):
        source_module("shards").plan(SourceConfig(name="shards", root=f"{memory}/nothing"))


def test_a_broken_note_of_the_url_is_told(tmp_path: Path) -> None:
    assert remote_url(tmp_path) is None
    (tmp_path / "remote.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="must hold an object with a url"):
        remote_url(tmp_path)
    assert RemoteFolder("memory://a/").child("b").url == "memory://a/b"


def test_a_run_may_take_the_shards_of_another_runs_folder_and_verify_says_where_they_are(memory, tmp_path) -> None:
    prepare(SourceConfig(name="shards", root=memory), tmp_path / "run")
    prepare(SourceConfig(name="shards", root=str(tmp_path / "run")), tmp_path / "next")
    assert remote_url(tmp_path / "next" / "train") == f"{memory}/train"
    with pytest.raises(UserError, match=rf"the index of those at {memory}/train"):
        find_splits(tmp_path / "next")
