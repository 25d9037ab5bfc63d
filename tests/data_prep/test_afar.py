"""Shards in a store are verified, counted and indexed by URL, as if they were here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_prep.afar import at_hand, standing_for
from data_prep.index import INDEX, SAMPLES
from data_prep.job import Layout
from data_prep.writer import write_split
from launch.cli import main
from tests.data_prep.samples import Plain, contents

URL = "memory://afar/mine"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same two splits in a store and in a folder; what is fetched goes into an empty temporary folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name, size in (("train", 25), ("val", 12)):
        for out in (f"{URL}/{name}", tmp_path / "mine" / name):
            write_split(Plain(size), out, name=name, fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    memory = fsspec.filesystem("memory")
    yield memory
    assert list((tmp_path / "tmp").iterdir()) == []
    memory.rm("/afar", recursive=True)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_what_is_said_of_a_store_is_what_is_said_of_a_folder(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = told(capsys, "verify", URL, "--workers", "1")
    assert (code, data["splits"], data["faults"]) == (0, [f"{URL}/train", f"{URL}/val"], [])
    afar, near = (told(capsys, "stats", where, "--workers", "1")[1] for where in (URL, str(tmp_path / "mine")))
    assert afar.pop("folder") == URL and near.pop("folder") == str(tmp_path / "mine")
    assert afar == near and afar["total"]["samples"] == 37


def test_faults_are_found_and_told_by_their_urls(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tar = f"{URL}/train/00001.tar"
    store.pipe(tar, store.cat(tar).replace(b'"number 12"', b'"numbe2 12"'))
    store.mv(f"{URL}/val/00001.tar", f"{URL}/val/other.tar")
    store.rm(f"{URL}/val/{SAMPLES}")
    code, data = told(capsys, "verify", URL, "--workers", "1")
    assert code == 1
    assert data["counts"] == {"checksum": 2, "missing shard": 1, "orphan shard": 1, "samples.npy": 1}
    assert {fault["split"] for fault in data["faults"]} == {f"{URL}/train", f"{URL}/val"}
    assert "/tmp/" not in json.dumps(data) and f"trimline index {URL}/val" not in json.dumps(data["splits"])


def test_keys_that_repeat_are_named(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store.cp_file(f"{URL}/val/00001.tar", f"{URL}/val/00002.tar")
    store.rm(f"{URL}/val/{INDEX}")
    code, data = told(capsys, "verify", f"{URL}/val", "--workers", "1")
    assert code == 1 and data["counts"]["duplicate key"] == 2
    assert any(fault["where"] == "00002.tar:k0010" for fault in data["faults"])


def test_an_index_is_made_in_the_store(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: store.cat(f"{URL}/train/{name}") for name in (INDEX, SAMPLES, "00000.tar")}
    for name in (INDEX, SAMPLES):
        store.rm(f"{URL}/train/{name}")
    code, data = told(capsys, "index", f"{URL}/train", "--workers", "1")
    assert (code, data["index"], data["written"]) == (0, f"{URL}/train/{INDEX}", 25)
    assert store.cat(f"{URL}/train/{SAMPLES}") == before[SAMPLES]
    assert json.loads(store.cat(f"{URL}/train/{INDEX}"))["name"] == "train"
    assert store.cat(f"{URL}/train/00000.tar") == before["00000.tar"]
    assert told(capsys, "verify", f"{URL}/train", "--workers", "1")[0] == 0


def test_one_shard_at_a_time_is_here(store: Any, tmp_path: Path) -> None:
    whole, data = contents(tmp_path / "mine/train"), (tmp_path / "mine/train/00000.tar").read_bytes()
    with standing_for(f"{URL}/train") as folder:
        path = folder / "00000.tar"
        for _ in range(2):
            assert (path.stat().st_blocks, path.stat().st_size) == (0, len(data))
            with at_hand(path):
                assert path.read_bytes() == data
    with at_hand(tmp_path / "mine/train/00000.tar"):
        pass
    assert contents(tmp_path / "mine/train") == whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", f"{URL}/train", "--repair"], "are repaired in a local folder alone"),
        (["verify", f"{URL}/nothing"], f"{URL}/nothing holds neither"),
        (["verify", "no/such/folder"], "there is no folder no/such/folder"),
        (["stats", "https://localhost:1/train"], "nothing says which shards there are"),
        (["index", "nowhere://bucket/x"], "nowhere://"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    store: Any, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1


def test_a_job_that_is_not_finished_is_not_indexed(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store.pipe(f"{URL}/train/.parts/begun", b"train")
    assert main(["index", f"{URL}/train"]) == 2
    assert f"{URL}/train is not finished" in capsys.readouterr().err
