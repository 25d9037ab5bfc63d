"""One live run per `checkpoint.path`: the second is refused, and a holder that has ended keeps nobody waiting."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.files import write_json
from pipeline import lease
from pipeline.checkpoint import CheckpointStore
from pipeline.checkpoint_rules import Guard
from pipeline.lease import LEASE, Lease, check_lease
from tests.pipeline.stores import SharedStore, SmallStore, emptied
from tests.pipeline.test_checkpoint import new_engine

ROOT = Path(__file__).resolve().parents[2]
_HOLD = """
import sys, time
import tests.pipeline.stores  # the shared:// store
from pipeline import lease
lease._BEAT_SECONDS = lease._SETTLE_SECONDS = 0.1
if sys.argv[2] == "elsewhere":
    lease._machine = lambda: "another machine"
with lease.Lease(sys.argv[1], "first", "runs/first"):
    print("holds", flush=True)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_BEAT", 0.05), ("_SETTLE", 0.1), ("_LOOK", 0.05), ("_PATIENCE", 1.5)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)


@pytest.fixture(params=["folder", "store"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = tmp_path / "kept"
    place.mkdir()
    return str(place) if request.param == "folder" else f"{SharedStore.protocol}://{place}"


@pytest.fixture
def holder(request: pytest.FixtureRequest, path: str) -> Iterator[subprocess.Popen[str]]:
    """Another run that holds the path, in a process of its own; it says where it runs, if it is asked to."""
    where = getattr(request, "param", "here")
    command = [sys.executable, "-c", _HOLD, path, where]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def mark(path: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((Path(path.partition("://")[2] or path) / LEASE).read_text())
    return content


@pytest.mark.parametrize("holder", ["here", "elsewhere"], indirect=True)
def test_a_second_live_run_is_refused_in_one_line_that_names_the_first(
    path: str, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError) as refused, Lease(path, "second", "runs/second"):
        pass
    host = os.uname().nodename
    assert str(refused.value) == (
        f"checkpoint.path={path} is in use by the run runs/first (process {holder.pid} on {host}); wait for it, stop "
        "it, or give another place with --checkpoint.path"
    )
    assert mark(path)["folder"] == "runs/first"


def test_a_killed_holder_of_this_machine_is_not_waited_for(path: str, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked for its end: it is a zombie
    began = time.monotonic()
    with Lease(path, "second", "runs/second"):
        assert time.monotonic() - began < 1.0
        assert mark(path)["folder"] == "runs/second"


@pytest.mark.parametrize("holder", ["elsewhere"], indirect=True)
def test_a_killed_holder_of_another_machine_is_waited_for_a_little(
    path: str, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with Lease(path, "second", "runs/second"):
        assert 1.5 <= time.monotonic() - began < 10
    assert "looking 1.5 s whether it still is" in caplog.text
    assert "gave no sign of life; its place is taken" in caplog.text


@pytest.mark.parametrize("holder", ["elsewhere"], indirect=True)
def test_the_same_run_started_again_is_the_same_owner_and_a_copy_of_its_folder_is_not(
    path: str, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError, match="in use by the run runs/first"), Lease(path, "first", "runs/copy"):
        pass
    began = time.monotonic()
    with Lease(path, "first", "runs/first"):
        assert time.monotonic() - began < 1.0


def test_a_process_with_the_number_of_a_holder_that_ended_is_not_taken_for_it(path: str) -> None:
    with Lease(path, "first", "runs/first"):
        entry = mark(path)
    place = Path(path.partition("://")[2] or path)
    (place / LEASE).write_text(json.dumps({**entry, "pid": 1}))
    with Lease(path, "second", "runs/second"):
        assert mark(path)["run"] == "second"


def test_who_lost_the_path_saves_nothing_and_is_told(path: str, tmp_path: Path) -> None:
    told: list[str] = []
    first = Lease(path, "first", "runs/first", lambda: told.append("lost"))
    store = CheckpointStore(f"{path}/pretrain", guard=Guard(check=lambda: check_lease(path, first.session)))
    with first:
        store.save(1, new_engine(), {}, {})
        place = Path(path.partition("://")[2] or path)
        stolen = {**mark(path), "run": "second", "session": "another", "folder": "runs/\x1bsecond"}
        write_json(place / LEASE, stolen)
        others = place / "pretrain" / ".partial_step_00000002"
        others.mkdir()
        with pytest.raises(UserError, match=r"was taken by the run runs/second .* this one saves nothing more there"):
            store.save(2, new_engine(), {}, {})
        assert others.is_dir()
        end = time.monotonic() + 10
        while not told and time.monotonic() < end:
            write_json(place / LEASE, stolen)  # in the middle of a sign of life, that would replace it
            time.sleep(0.02)
        assert told == ["lost"]
        with pytest.raises(UserError, match="was taken by the run runs/second"):
            first.check()
    assert mark(path) == stolen
    assert [saved.step for saved in store.place.saved()] == [1]


def test_a_path_that_is_let_go_is_free_and_a_mark_that_is_gone_comes_back(path: str) -> None:
    place = Path(path.partition("://")[2] or path)
    with Lease(path, "first", "runs/first") as held:
        (place / LEASE).unlink()
        check_lease(path, held.session)
        end = time.monotonic() + 10
        while not (place / LEASE).exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert mark(path)["run"] == "first"
    assert not (place / LEASE).exists()


def test_a_store_that_refuses_for_a_while_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    url, lost = emptied(SmallStore), []
    with Lease(url, "first", "runs/first", lambda: lost.append(1)) as held:
        monkeypatch.setattr(SmallStore, "room", 0)
        time.sleep(0.3)
        monkeypatch.setattr(SmallStore, "room", 1 << 20)
        time.sleep(0.3)
        held.check()
        beat = json.loads(held._target.read(LEASE))["beat"]
        time.sleep(0.3)
        assert json.loads(held._target.read(LEASE))["beat"] > beat
    assert lost == []
    monkeypatch.setattr(SmallStore, "room", 0)
    with pytest.raises(UserError, match=r"small://bucket/run cannot be used .*quota"), Lease(url, "a", "b"):
        pass


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to checkpoint.path=.*give another one"):
        Lease(str(tmp_path / "file"), "a", "b").__enter__()
