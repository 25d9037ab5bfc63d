"""`trimline download` with the real img2dataset, against a web server that behaves as old lists' servers do."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import launch
from data_prep.download.account import GROUPS
from data_prep.index import load_index
from data_prep.sources import SourceConfig, prepare
from data_prep.tars import group_samples, list_members, read_member
from data_prep.verify import verify_folder
from tests.data_prep.download.server import _Server, encoded, serving

ROOT = Path(launch.__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first one may have to make img2dataset's environment


def command(folder: Path, *words: str) -> list[str]:
    start = [sys.executable, "-m", "launch", "download", str(folder / "cc3m.tsv"), "--out", str(folder / "out")]
    fast = ["--allow-private", "--processes", "2", "--timeout", "1", "--max-seconds", "3", "--threads", "16"]
    return [*start, *fast, "--json", *words]


def run(folder: Path, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *words), capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}, **how,
    )  # fmt: skip


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        command(folder, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def account_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    account: dict[str, Any] = json.loads(done.stdout)
    assert account["asked"] == account["got"] + sum(account[group] for group in GROUPS)
    assert account["asked"] == account["got"] + sum(account["reasons"].values())
    return account


def write_list(folder: Path, rows: list[tuple[str, str]]) -> None:
    (folder / "cc3m.tsv").write_text("".join(f"{caption}\t{url}\n" for caption, url in rows))


def samples(split: Path) -> dict[int, dict[str, bytes]]:
    """Each sample's members by the line of the list that asked for it."""
    found = {}
    for path in sorted(split.glob("*.tar")):
        with open(path, "rb") as file:
            for key, members in group_samples(list_members(path)):
                found[int(key)] = {member.extension: read_member(file, member) for member in members}
    return found


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


def tool_processes(folder: Path) -> set[int]:
    """The processes of img2dataset for this folder, found by the settings file in their command lines."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if any(word.startswith(str(folder).encode()) and word.endswith(b"settings.json") for word in words):
                group = os.getpgid(int(entry.name))
                found |= {int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit() and _group(e) == group}
    return found


def _group(entry: Path) -> int | None:
    try:
        return os.getpgid(int(entry.name))
    except ProcessLookupError:
        return None


def finished(folder: Path) -> int:
    return len(list((folder / "out" / ".download-train" / "pass-0" / "raw").glob("*_stats.json")))


COUNTS = {
    "good": 30, "png": 4, "webp": 4, "redirect": 3, "big": 2, "flaky": 5, "same": 5,
    "gif": 2, "html": 6, "cut": 4, "bigcut": 2, "empty": 2, "small": 4, "short": 2, "huge": 1, "endless": 1, "close": 2,
    "robots": 2, "loop": 2, "tofile": 1, "toftp": 1, "stall": 2, "stallbody": 2, "trickle": 2, "headers": 1,
    "status404": 9, "status403": 2, "status410": 1, "status500": 2, "status429": 2,
}  # fmt: skip


def rows_of(server: _Server) -> list[tuple[str, str]]:
    rows = [(f"a {what} {n}", f"{server.url}/{what}/{n + 1000 * at}.jpg")
            for at, (what, count) in enumerate(COUNTS.items()) for n in range(count)]  # fmt: skip
    rows += [("said again", rows[0][1]), rows[1]]  # the first picture has two captions, the second line came twice
    rows += [("x", "file:///etc/passwd"), ("x", "ftp://a/b.jpg"), ("", f"{server.url}/good/1.jpg"), ("no url", "")]
    return [
        *rows,
        ("no such host", "http://no-such-host.invalid/a.jpg"),
        ("nobody listens", "http://127.0.0.1:9/a.jpg"),
    ]


REASONS = {
    "gone: HTTP 404": 9, "gone: HTTP 403": 2, "gone: HTTP 410": 1, "gone: redirects without end": 2,
    "server_error: HTTP 500": 2, "server_error: HTTP 429": 2,
    "connection: refused": 1, "connection: closed without an answer": 2, "connection: ended early": 2,
    "timeout: no answer": 4, "timeout: took too long": 3,
    "not_an_image: not a JPEG, PNG or WebP picture": 10, "not_an_image: broken picture": 6, "too_small": 4,
    "duplicate: same picture from another URL": 4, "duplicate: same URL, captions joined": 2,
    "refused: X-Robots-Tag": 2, "refused: too many bytes": 2, "refused: led to another scheme": 2,
    "refused: not an http or https URL": 2, "refused: no URL": 1, "refused: no caption": 1,
}  # fmt: skip


def test_whatever_servers_do_the_account_adds_up_and_the_shards_are_whole(tmp_path):
    with serving() as server:
        rows = rows_of(server)
        write_list(tmp_path, rows)
        account = account_of(run(tmp_path, "--shard-urls", "40", "--shard-samples", "20", "--name", "cc3m"))
        asked = dict(server.seen)
    # A machine without a name service says that it does not answer; one with, that there is no such host.
    dns = {"gone: host not found", "connection: name service did not answer"} & set(account["reasons"])
    assert {**account["reasons"], **dict.fromkeys(dns)} == {**REASONS, **dict.fromkeys(dns)}
    assert len(dns) == 1
    assert (account["asked"], account["got"]) == (len(rows), 30 + 4 + 4 + 3 + 2 + 5 + 1)

    split = tmp_path / "out" / "train"
    assert verify_folder(split) == []
    got = samples(split)
    first_line = {url: line for line, (_, url) in reversed(list(enumerate(rows))) if rows[line][0]}
    for line, members in got.items():
        caption, url = rows[line]
        what, number = url.removesuffix(".jpg").rsplit("/", 2)[1:]
        kind = {"png": "png", "webp": "webp"}.get(what, "jpg")
        served = encoded(999_999 if what == "same" else int(number), 400 if what == "big" else 48,
                         {"jpg": "JPEG"}.get(kind, kind))  # fmt: skip
        assert members[kind] == served, url  # the very bytes, named by what they are
        told = json.loads(members["json"])
        assert (told["url"], told["source"], line) == (url, "cc3m", first_line[url])
        assert members["txt"].decode() == told["captions"][0] == caption
    assert json.loads(got[0]["json"])["captions"] == ["a good 0", "said again"]
    assert json.loads(got[1]["json"])["captions"] == ["a good 1"]

    # What may pass was asked twice, what is gone once.
    by_what: dict[str, set[int]] = {}
    for path, count in asked.items():
        by_what.setdefault(path.split("/")[1], set()).add(count)
    assert all(by_what[what] == {2} for what in ("flaky", "stall", "status500", "status429", "short", "close"))
    assert all(by_what[what] == {1} for what in ("png", "status404", "status403", "html", "cut", "robots", "small"))

    # The count that was achieved is what everything downstream shows.
    index, _ = load_index(split)
    assert index["account"]["asked"] == len(rows)
    assert index["account"]["written"] == account["got"] == sum(shard["nsamples"] for shard in index["shardlist"])
    assert sum(index["account"]["skipped"].values()) == len(rows) - account["got"]
    assert json.loads((split / "download.json").read_text())["reasons"] == account["reasons"]
    linked = prepare(SourceConfig(name="shards", root=str(tmp_path / "out")), tmp_path / "run")
    assert (linked["asked"], linked["written"]) == (len(rows), account["got"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]  # nothing is left on the way

    # Again: nothing is asked, the same is said. Another list: refused.
    again = account_of(run(tmp_path, "--shard-urls", "40", "--shard-samples", "20", "--name", "cc3m"))
    assert again == account
    write_list(tmp_path, rows[:5])
    other = run(tmp_path)
    assert other.returncode == 2
    assert "holds something else" in other.stderr


def test_the_text_for_people_names_the_share(tmp_path):
    with serving() as server:
        write_list(tmp_path, [("a", f"{server.url}/{w}/{n}.jpg") for w in ("good", "status404") for n in range(3)])
        words = [word for word in command(tmp_path, "--max-side", "40") if word != "--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=True, env=environment)
    assert "3 of 6 lines of the list became pictures (50.0%)" in done.stdout
    assert "HTTP 404 3" in done.stdout
    assert "40 to 70%" in done.stdout
    assert "download: 0 of 6" in done.stderr
    assert {tuple(json.loads(m["json"])[side] for side in ("width", "height")) for m in
            samples(tmp_path / "out" / "train").values()} == {(30, 40)}  # fmt: skip


@contextlib.contextmanager
def slow_good_ones(folder: Path, count: int = 120) -> Iterator[_Server]:
    with serving(delay=0.15) as server:
        write_list(folder, [(f"picture {n}", f"{server.url}/good/{n}.jpg") for n in range(count)])
        yield server


SMALL = ("--shard-urls", "10", "--processes", "2", "--threads", "2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_img2dataset_and_the_same_command_goes_on(number, tmp_path):
    with slow_good_ones(tmp_path) as server:
        stopped = started(tmp_path, *SMALL)
        until(lambda: finished(tmp_path) >= 3)
        assert len(tool_processes(tmp_path)) >= 3
        stopped.send_signal(number)
        _, said = stopped.communicate(timeout=30)
        assert stopped.returncode == {signal.SIGINT: 130}.get(number, -number), said
        assert "Traceback" not in said
        until(lambda: not tool_processes(tmp_path), seconds=5)
        assert not (tmp_path / "out" / "train").exists()
        kept = finished(tmp_path)
        asked_before = server.seen.total()
        account = account_of(run(tmp_path, *SMALL))
        assert account["got"] == 120
        assert verify_folder(tmp_path / "out" / "train") == []
        # What was finished is not asked again.
        assert server.seen.total() - asked_before == 120 - 10 * kept
        assert sorted(samples(tmp_path / "out" / "train")) == list(range(120))


def test_a_worker_that_the_system_kills_does_not_hold_the_download(tmp_path):
    words = (*SMALL, "--threads", "100", "--stall-seconds", "25", "--max-seconds", "1")
    with slow_good_ones(tmp_path, 200):
        download = started(tmp_path, *words)
        until(lambda: finished(tmp_path) >= 2)
        oldest = min(tool_processes(tmp_path))
        busy = [pid for pid in tool_processes(tmp_path) if pid != oldest and b"spawn_main" in _cmdline(pid)]
        for pid in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        out, said = download.communicate(timeout=120)
    assert download.returncode == 0, said
    assert json.loads(out)["got"] == 200
    assert "gave no sign of life" in said
    assert "shards unfinished" in said


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_full_disk_is_one_clear_line_and_nothing_finished_is_lost(tmp_path):
    # A limit on the file size is what an unprivileged test can have of a full disk.
    limit = 30_000
    with slow_good_ones(tmp_path, 120) as server:
        write_list(tmp_path, [(f"p {n}", f"{server.url}/{'big' if n > 60 else 'good'}/{n}.jpg") for n in range(120)])
        full = run(tmp_path, *SMALL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        assert full.returncode == 2, full.stderr
        last = full.stderr.strip().splitlines()[-1]
        assert "is full; free some space" in last
        account = account_of(run(tmp_path, *SMALL, "--keep-raw"))
    assert account["got"] == 120
    assert len(list((tmp_path / "out" / ".download-train" / "pass-0" / "raw").glob("*.tar"))) == 12
    assert verify_folder(tmp_path / "out" / "train") == []


def test_without_a_network_nothing_is_kept_and_the_next_call_starts_over(tmp_path):
    write_list(tmp_path, [("a", "http://127.0.0.1:9/a.jpg")])
    done = run(tmp_path)
    assert done.returncode == 2
    assert "not one of 1 URLs was fetched" in done.stderr
    assert "connection: refused" in done.stderr
    again = run(tmp_path)
    assert again.returncode == 2
    assert "try 2" in again.stderr


def test_private_addresses_are_refused_unless_they_are_allowed(tmp_path):
    with serving() as server:
        write_list(tmp_path, [("a", f"{server.url}/good/1.jpg")])
        words = [word for word in command(tmp_path) if word != "--allow-private"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False, env=environment)
        assert done.returncode == 2
        assert "refused: address not public" in done.stderr
        assert server.seen.total() == 0
