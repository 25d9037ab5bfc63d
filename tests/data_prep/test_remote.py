"""Byte ranges from behind a URL, with everything that can go wrong on the way."""

import base64
import os
import pickle
import time
import weakref
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from data_prep.errors import UserError
from data_prep.patience import Passing, Patience, patiently
from data_prep.remote import RemoteFolder, is_url
from tests.data_prep.server import Server, serving

DATA = os.urandom(100_000)
QUICK = Patience(stall_seconds=0.15, give_up_seconds=2.0)
CALM = Patience(stall_seconds=10.0, give_up_seconds=60.0)  # a busy machine is no failure


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.patience._FIRST_PAUSE", 0.002)
    monkeypatch.setattr("data_prep.http_ranges._SECOND_LOOK", 0.0)


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(DATA)
    with serving(tmp_path) as running:
        yield running


def folder(server: Server, patience: Patience = CALM) -> RemoteFolder:
    return RemoteFolder(server.url, patience)


def test_ranges_are_exact_and_share_a_connection(server: Server) -> None:
    remote = folder(server)
    for begin, end in ((0, 1), (500, 90_000), (99_999, 100_000)):
        assert remote.read("a.tar", begin, end, len(DATA)) == (DATA[begin:end], len(DATA))
    assert server.requests[1] == ("a.tar", "bytes=500-89999")
    assert remote.read_whole("a.tar") == DATA
    assert len(remote._ranges._pool[1].pools) == 1
    assert remote._ranges._pool[1].connection_from_url(server.url).num_connections == 1


PASSING = ["vanish", "drop", "stall", "html", "500", "503", "429", "other range", "no range", "impossible range"]


@pytest.mark.parametrize("fault", [*PASSING, "chunked page", "gzip", "gzip range"])
def test_what_passes_is_tried_again(server: Server, fault: str) -> None:
    server.fault = lambda number, name: fault if number < 2 else None
    failures = []
    patience = replace(CALM, stall_seconds=0.5) if fault == "stall" else CALM
    piece = folder(server, patience).read("a.tar", 1000, 50_000, len(DATA), failures.append)
    assert piece == (DATA[1000:50_000], len(DATA))
    assert len(failures) == len(server.requests) - 1 == (0 if fault in ("no range", "gzip") else 2)


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
        ("chunked page", 3, "answers with more than the 100000 bytes of the file"),
        ("moved", 18, "too many redirects"),
        ("gzip range", 3, "with a range in the encoding gzip"),
    ],
)
def test_what_will_not_pass_is_believed(server: Server, fault: str, requests: int, said: str) -> None:
    server.fault = lambda number, name: fault
    with pytest.raises(UserError, match=said):
        folder(server).read("a.tar", 0, 3000, len(DATA))
    assert len(server.requests) == requests


@pytest.mark.parametrize("fault", ["html", "other range", "gzip range", "chunked page"])
def test_a_page_of_a_moment_stops_nobody(server: Server, monkeypatch, fault: str) -> None:
    monkeypatch.setattr("data_prep.http_ranges._SECOND_LOOK", 0.4)
    until = time.monotonic() + 0.5
    server.fault = lambda number, name: fault if time.monotonic() < until else None
    assert folder(server).read("a.tar", 1000, 50_000, len(DATA)).data == DATA[1000:50_000]


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


@pytest.mark.parametrize("fault", ["no length", "gzip chunks"])
def test_an_answer_that_states_no_length_is_read_to_its_end(server: Server, fault: str) -> None:
    server.fault = lambda number, name: fault
    assert folder(server).read("a.tar", 0, 50, len(DATA)) == (DATA[:50], len(DATA))
    assert folder(server).read_whole("a.tar") == DATA
    with pytest.raises(UserError, match="answers with 100000 bytes, not with the 100010 bytes of the file"):
        folder(server).read("a.tar", 0, 50, 100_010)


def test_a_whole_file_may_come_compressed(server: Server) -> None:
    server.fault = lambda number, name: "gzip"
    assert folder(server).read_whole("a.tar") == DATA


def test_a_file_without_an_end_is_given_up(server: Server, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.http_ranges._LARGEST", 1 << 20)
    server.fault = lambda number, name: "endless"
    with pytest.raises(UserError, match=r"a\.tar cannot be read: more than 1048576 bytes came"):
        folder(server).read_whole("a.tar")
    assert len(server.requests) == 1


def test_a_move_is_followed_and_where_to_is_not_told(server: Server, caplog) -> None:
    server.fault = lambda number, name: "moved" if number % 2 == 0 else None
    assert folder(server).read("a.tar", 5, 50, len(DATA)) == (DATA[5:50], len(DATA))
    assert server.requests == [("a.tar", "bytes=5-49")] * 2
    for fault in ("moved", "moved to nowhere"):
        server.fault = lambda number, name, fault=fault: fault
        with pytest.raises(UserError, match=r"a\.tar") as error:
            folder(server).read("a.tar", 0, 50, len(DATA))
        assert "secret" not in str(error.value) + caplog.text


def test_a_proxy_is_given_the_name_and_password_of_its_address(server: Server, monkeypatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:pass%40word@127.0.0.1:{server.server_port}")
    assert RemoteFolder("http://shards.invalid/data", QUICK).read_whole("a.tar") == DATA
    assert server.proxy_credentials == ["Basic " + base64.b64encode(b"me:pass@word").decode()]


def test_connections_that_a_fork_inherits_are_left_alone(server: Server) -> None:
    """Closing them takes locks that a thread of the other process may have held, and tells its event loop."""
    remote = folder(server)
    assert remote.read_whole("a.tar") == DATA
    inherited = weakref.ref(remote._ranges._pool[1])
    child = os.fork()
    if not child:
        os._exit(0 if remote.read_whole("a.tar") == DATA and inherited() is not None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_store_whose_file_was_replaced_is_asked_for_its_size_again() -> None:
    fs = fsspec.filesystem("memory")
    try:
        for length in (1000, 500):
            fs.pipe_file("/replaced/a.tar", DATA[:length])
            if length == 1000:
                remote = RemoteFolder("memory://replaced", QUICK)
            begin = 400 if length == 500 else 0
            assert remote.read("a.tar", begin, 900, 1000) == (DATA[begin : min(length, 900)], length)
    finally:
        fs.rm("/replaced", recursive=True)


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
        ("https://me:secret@host/x?sign=1", "plain URL"),
        ("ftp://me:secret@host/x", "a password in the URL .*FSSPEC_FTP_PASSWORD"),
        ("s3://key:secret@bucket/x", "a password in the URL"),
        ("https://host/x?token=secret", "https://host/x: give the plain URL"),
        ("http://[host/x", "is no address"),
    ],
)
def test_urls_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        RemoteFolder(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["ftp:///x", "github://a", "dir://x", "reference://x"])
def test_a_url_that_says_too_little_for_its_store_is_the_users_to_mend(url: str) -> None:
    with pytest.raises(UserError, match=f"{url} cannot be opened"):
        RemoteFolder(url, QUICK).read_whole("index.json")


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
