"""Byte ranges from behind a URL, with everything that can go wrong on the way."""

import os
import pickle
import time
from pathlib import Path

import fsspec
import pytest

from data_prep.errors import UserError
from data_prep.patience import Passing, Patience, patiently
from data_prep.remote import RemoteFolder, is_url
from tests.data_prep.server import Server, serving

DATA = os.urandom(100_000)
QUICK = Patience(stall_seconds=0.15, give_up_seconds=2.0)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.patience._FIRST_PAUSE", 0.002)


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(DATA)
    with serving(tmp_path) as running:
        yield running


def folder(server: Server, patience: Patience = QUICK) -> RemoteFolder:
    return RemoteFolder(server.url, patience)


def test_ranges_are_exact_and_share_a_connection(server: Server) -> None:
    remote = folder(server)
    for begin, end in ((0, 1), (500, 90_000), (99_999, 100_000)):
        assert remote.read("a.tar", begin, end, len(DATA)) == (DATA[begin:end], len(DATA))
    assert server.requests[1] == ("a.tar", "bytes=500-89999")
    assert remote.read_whole("a.tar") == DATA
    assert len(remote._ranges._pool[1].pools) == 1
    assert remote._ranges._pool[1].connection_from_url(server.url).num_connections == 1


@pytest.mark.parametrize("fault", ["vanish", "drop", "stall", "html", "500", "503", "429", "other range", "no range"])
def test_what_passes_is_tried_again(server: Server, fault: str) -> None:
    server.fault = lambda number, name: fault if number < 2 else None
    failures = []
    piece = folder(server).read("a.tar", 1000, 50_000, len(DATA), failures.append)
    assert piece == (DATA[1000:50_000], len(DATA))
    assert len(failures) == len(server.requests) - 1 == (0 if fault == "no range" else 2)


def test_a_slow_server_is_waited_for_as_long_as_bytes_come(server: Server) -> None:
    server.fault = lambda number, name: "slow"
    assert folder(server).read("a.tar", 0, len(DATA), len(DATA)).data == DATA
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["vanish", "stall", "drip", "500"])
def test_what_never_passes_ends_in_time_and_in_one_line(server: Server, fault: str) -> None:
    server.fault = lambda number, name: fault
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"{server.url}/a\.tar cannot be read: .* attempts in") as error:
        folder(server, Patience(stall_seconds=0.1, give_up_seconds=0.5)).read("a.tar", 0, 3000, len(DATA))
    assert time.monotonic() - began < 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fault", "requests", "said"),
    [
        ("404", 1, "answers 404"),
        ("403", 1, "check your access"),
        ("401", 1, "check your access"),
        ("html", 3, "answers with 39 bytes of text/html, not with the 100000 bytes of the file"),
    ],
)
def test_what_will_not_pass_is_believed(server: Server, fault: str, requests: int, said: str) -> None:
    server.fault = lambda number, name: fault
    with pytest.raises(UserError, match=said):
        folder(server).read("a.tar", 0, 3000, len(DATA))
    assert len(server.requests) == requests


def test_a_file_of_another_size_is_read_as_far_as_it_goes_and_told_once(server: Server, caplog) -> None:
    remote = folder(server)
    assert remote.read("a.tar", 90_000, 110_000, 120_000) == (DATA[90_000:], len(DATA))
    assert remote.read("a.tar", 110_000, 120_000, 120_000) == (b"", len(DATA))
    assert remote.read("a.tar", 0, 10, 50_000) == (DATA[:10], len(DATA))
    told = [record.message for record in caplog.records]
    assert told == [f"{server.url}/a.tar has 100000 bytes where the index says 120000"]
    assert len(server.requests) == 3


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server) -> None:
    server.fault = lambda number, name: "no range"
    remote = folder(server)
    assert remote.read("a.tar", 70_000, 70_010, len(DATA)).data == DATA[70_000:70_010]
    assert remote._ranges.from_start


def test_a_file_is_fetched_whole_or_not_at_all(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.remote._PIECE", 30_000)
    server.fault = lambda number, name: "drop" if number == 2 else None
    folder(server).fetch("a.tar", tmp_path / "copy", len(DATA))
    assert (tmp_path / "copy").read_bytes() == DATA
    with pytest.raises(UserError, match="has 100000 bytes where 100001 are wanted"):
        folder(server).fetch("a.tar", tmp_path / "other", len(DATA) + 1)
    assert not (tmp_path / "other").exists()


def test_stores_are_read_and_listed() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("train/index.json", "coco/val/index.json", "train/a.tar"):
        fs.pipe_file(f"/remote-test/{name}", DATA)
    try:
        remote = RemoteFolder("memory://remote-test/", QUICK)
        assert remote.splits() == ["coco/val", "train"]
        assert remote.child("train").read("a.tar", 5, 50, len(DATA)) == (DATA[5:50], len(DATA))
        assert remote.child("train").read("a.tar", 99_990, 100_020, 100_020) == (DATA[-10:], len(DATA))
        assert pickle.loads(pickle.dumps(remote)).read_whole("train/index.json") == DATA
        with pytest.raises(UserError, match=r"b\.tar is not there"):
            remote.read("b.tar", 0, 1, 1)
    finally:
        fs.rm("/remote-test", recursive=True)


def test_errors_of_a_stores_library_are_told_in_one_line() -> None:
    remote = RemoteFolder("ftp://127.0.0.1:9/x", Patience(stall_seconds=0.2, give_up_seconds=0.2))
    with pytest.raises(UserError, match=r"ftp://127\.0\.0\.1:9/x/a\.tar cannot be read: ConnectionRefusedError"):
        remote.read("a.tar", 0, 1, 1)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://x", "nothing here can read nosuch"),
        ("simplecache::s3://a/b", "plain URL"),
        ("https://host/x?signature=1", "plain URL"),
        ("https://me:secret@host/x", "a name or password in the URL"),
    ],
)
def test_urls_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        RemoteFolder(url)


def test_a_web_server_lists_nothing(server: Server) -> None:
    with pytest.raises(UserError, match=r"cannot be listed; name its folders .* --data\.splits"):
        folder(server).splits()


@pytest.mark.parametrize(
    ("where", "remote"),
    [("s3://a/b", True), ("/a/b", False), ("file:///a", False), ("local://a", False), (Path("a"), False)],
)
def test_what_a_url_is(where: str | Path, remote: bool) -> None:
    assert is_url(where) is remote


def test_pauses_grow_and_errors_of_the_program_are_raised(monkeypatch) -> None:
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)

    def fail(deadline: float) -> None:
        raise Passing("busy", tries=6)

    with pytest.raises(UserError, match="busy"):
        patiently("it", fail, Patience(), lambda: 0)
    assert len(pauses) == 5
    assert all(0.5 <= pause / (0.002 * 2**n) <= 1.5 for n, pause in enumerate(pauses))
    with pytest.raises(ZeroDivisionError):
        patiently("it", lambda deadline: 1 // 0, Patience(), lambda: 0)
