"""Whatever happens around checkpoints, one that can be read stays, and all ranks come to the same end."""

import errno
import fcntl
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep import targets
from data_prep.errors import DiskFull, NoAnswer, UserError
from data_prep.files import read_json
from data_prep.targets import open_target
from pipeline.checkpoint import CheckpointConfig, CheckpointStore
from pipeline.checkpoint_places import newest_step
from pipeline.checkpoint_rules import Guard
from pipeline.lease import check_lease
from pipeline.process import Process
from pipeline.together import RankFailedError, _told, together
from tests.pipeline.distributed import run_ranks
from tests.pipeline.stores import FailingStore, SharedStore, TroubledStore, emptied
from tests.pipeline.test_checkpoint import ONE, in_a_child, kill_at, new_engine, newest, one_thread, save, shorten
from tests.pipeline.test_checkpoint_background import restored
from tests.pipeline.zero import SmallRun, engine_config

__all__ = ["one_thread"]  # a fixture


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that does not answer is asked again without a pause."""
    monkeypatch.setattr(targets, "_PAUSES", (0.0, 0.0))
    yield
    FailingStore.fails, FailingStore.where, FailingStore.failures = "", "", 1 << 30


@pytest.mark.parametrize("rules", [{}, {"keep_best": 1}])
def test_a_damaged_one_takes_no_place_of_one_that_can_be_read(tmp_path: Path, rules: dict) -> None:
    store = CheckpointStore(tmp_path, CheckpointConfig(keep_last=1, **rules))
    save(store, 1)
    shorten(save(CheckpointStore(tmp_path, CheckpointConfig(keep_last=9)), 50))
    assert newest(store) == 1
    save(store, 2)
    assert newest(store) == 2
    save(store, 3)
    assert newest(store) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000050"]


def test_an_old_one_that_cannot_be_removed_costs_nothing_and_goes_later(caplog: pytest.LogCaptureFixture) -> None:
    store, engine = CheckpointStore(emptied(FailingStore), CheckpointConfig(keep_last=1)), new_engine()
    store.save(1, engine, {}, {})
    FailingStore.fails = "remove"
    store.save(2, engine, {}, {})
    FailingStore.fails = ""
    assert "stay for now" in caplog.text
    assert restored(store)[1] == 2
    store.save(3, engine, {}, {})
    assert [saved.step for saved in store.place.saved()] == [3]


def test_a_mark_that_the_store_took_and_denied_does_not_count() -> None:
    store, engine = CheckpointStore(emptied(FailingStore)), new_engine()
    store.save(1, engine, {}, {})
    FailingStore.fails = "mark"
    with pytest.raises(UserError, match="no answer came"):
        store.save(2, engine, {}, {})
    FailingStore.fails = ""
    assert [saved.step for saved in store.place.saved()] == [1]


def test_a_store_that_does_not_answer_is_not_taken_for_a_damaged_checkpoint() -> None:
    url = emptied(FailingStore)
    store = CheckpointStore(url)
    store.save(1, new_engine(), {}, {})
    store.save(2, new_engine(), {}, {})
    FailingStore.fails = "read"
    for look in (store.latest, lambda: newest_step(url), lambda: store.place.is_whole("step_00000002")):
        with pytest.raises(NoAnswer, match=r"no answer came.*run the same command again"):
            look()
    FailingStore.failures = 2  # of one question; its third attempt is answered
    assert newest(store) == newest_step(url) == 2


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "I/O error")])
def test_a_network_disk_that_does_not_answer_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    save(store, 2)

    def fails(path: Path) -> bytes:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(NoAnswer, match="cannot be used now"):
            store.latest()
    assert newest(store) == 2


def test_a_network_disk_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = CheckpointStore(tmp_path), Path.read_bytes
    save(store, 1)
    failures = [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "I/O error")]

    def answers_at_last(path: Path) -> bytes:
        if failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", answers_at_last)
    assert newest(store) == 1 and not failures


def test_a_disk_that_is_mounted_for_reading_only_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)

    def refuses(*given: object, **more: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.files._opened", refuses)
        with pytest.raises(UserError, match=r"cannot be used \(Read-only file system\); have it mounted for writing"):
            save(store, 2)
    assert newest(store) == 1


def test_the_best_one_stays_while_what_it_scored_cannot_be_read() -> None:
    store, engine = CheckpointStore(emptied(FailingStore), CheckpointConfig(keep_last=1, keep_best=1)), new_engine()
    for number, loss in enumerate((1.0, 2.0), 1):
        store.begin(number, engine, {}, {}, {"loss": loss})
    store.finish()
    # All attempts to read its manifest for the first time fail; the next time it is read.
    FailingStore.fails, FailingStore.where, FailingStore.failures = "read", "step_00000001", 3
    store._remove_old("step_00000002")
    assert FailingStore.failures == 0
    assert [saved.step for saved in store.place.saved()] == [2, 1]


def test_where_all_are_damaged_nothing_begins_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in (1, 2):
        shorten(save(CheckpointStore(tmp_path, CheckpointConfig(keep_last=9)), number))
    with pytest.raises(UserError, match=r"no checkpoint that is whole: step_00000002, step_00000001 .*--fresh"):
        store.latest()
    assert len(list(tmp_path.iterdir())) == 2


def test_two_saves_in_a_row_may_go_unanswered_and_a_third_ends_training(caplog: pytest.LogCaptureFixture) -> None:
    store, engine = CheckpointStore(emptied(FailingStore)), new_engine()
    store.save(1, engine, {}, {})
    for _ in range(2):  # one that is answered begins the count anew
        FailingStore.fails = "upload"
        store.begin(2, engine, {}, {})
        store.begin(3, engine, {}, {})
        store.finish(must=False)
        assert store.has_any
        FailingStore.fails = ""
        store.begin(4, engine, {}, {})
        store.finish(must=False)
    assert caplog.text.count("going on without a checkpoint: failing://bucket/run cannot be used (TimeoutError") == 4
    FailingStore.fails = "upload"
    store.begin(5, engine, {}, {})
    store.begin(6, engine, {}, {})
    store.begin(7, engine, {}, {})
    with pytest.raises(NoAnswer, match="no answer came"):
        store.begin(8, engine, {}, {})
    FailingStore.fails = ""
    assert restored(store)[1] == 4


def test_a_lease_that_cannot_be_read_costs_one_checkpoint() -> None:
    url, held = emptied(FailingStore), "mine"
    guard = Guard(check=lambda: check_lease(url, held))
    store, engine = CheckpointStore(f"{url}/pretrain", guard=guard), new_engine()
    with open_target(url).write("lease.json") as file:
        file.write(b'{"session": "mine"}')
    FailingStore.fails = "read"
    store.begin(1, engine, {}, {})
    store.finish(must=False)
    assert not store.has_any
    FailingStore.fails = ""
    store.save(2, engine, {}, {})
    assert restored(store)[1] == 2


def test_a_store_that_refuses_is_not_gone_on_with_as_a_full_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise PermissionError("not yours")

    url = emptied(FailingStore)
    store = CheckpointStore(url, CheckpointConfig(path=url, if_full="go_on"))
    monkeypatch.setattr(FailingStore, "put_file", refuse)
    store.begin(1, new_engine(), {}, {})
    with pytest.raises(UserError, match="not yours"):
        store.finish(must=False)


def test_a_place_that_another_run_has_taken_is_not_gone_on_with_as_a_full_one_is() -> None:
    url = emptied(FailingStore)
    with open_target(url).write("lease.json") as file:
        file.write(b'{"session": "another"}')
    guard = Guard(check=lambda: check_lease(url, "mine"))
    store = CheckpointStore(f"{url}/pretrain", CheckpointConfig(path=url, if_full="go_on"), guard=guard)
    store.begin(1, new_engine(), {}, {})
    with pytest.raises(UserError, match="was taken by"):
        store.finish(must=False)


def test_a_metric_that_is_no_number_is_there_and_makes_none_of_the_best(tmp_path: Path) -> None:
    store, engine = CheckpointStore(tmp_path, CheckpointConfig(keep_last=1, keep_best=1)), new_engine()
    for number, loss in enumerate((2.0, math.nan, 3.0), 1):
        store.begin(number, engine, {}, {}, {"loss": loss})
    store.finish()
    assert [saved.step for saved in store.place.saved()] == [3, 1]


def test_what_a_killed_reader_left_is_not_taken_for_damage(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = CheckpointStore(emptied(FailingStore))
    store.save(1, new_engine(), {"queue": torch.arange(3)}, {})
    checkpoint = store.latest()
    assert checkpoint is not None
    endings = []
    for event in range(0, 400, 3):
        endings.append(in_a_child(lambda: kill_at(event, lambda: checkpoint.restore(new_engine(), ONE))))  # noqa: B023
        if endings[-1] == 0:
            break
        assert restored(store)[1] == 1
    assert len(endings) > 5 and endings[-1] == 0, endings


def test_copies_that_killed_processes_left_go_and_those_in_use_stay(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = CheckpointStore(emptied(FailingStore))
    for event in range(0, 200, 4):
        in_a_child(lambda: kill_at(event, lambda: store.save(1, new_engine(), {}, {})))  # noqa: B023
        if left := list(tmp_path.glob("trimline-checkpoint-*")):
            break
    assert len(left) == 1, "no kill fell between the first file and the last upload"
    used = Path(tempfile.mkdtemp(prefix="trimline-checkpoint-"))
    handle = os.open(used, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    for folder in (*left, used):
        os.utime(folder, (0, 0))
    store.save(1, new_engine(), {}, {})
    os.close(handle)
    assert list(tmp_path.iterdir()) == [used]


def test_a_note_says_where_the_newest_one_lies(tmp_path: Path) -> None:
    url, note = emptied(FailingStore), tmp_path / "checkpoint.json"
    store = CheckpointStore(url, note=note)
    store.save(7, new_engine(), {}, {})
    told = read_json(note)
    assert (told["step"], told["where"]) == (7, f"{url}/step_00000007")


@pytest.mark.parametrize(
    ("mine", "other", "kind", "words"),
    [
        (None, NoAnswer("x"), NoAnswer, "x"),
        (NoAnswer("x"), None, NoAnswer, "x"),
        (None, DiskFull("full"), DiskFull, "full"),
        (NoAnswer("x"), DiskFull("full"), DiskFull, "full"),
        (DiskFull("full"), UserError("refused"), UserError, "refused"),
        (NoAnswer("x"), UserError("refused"), UserError, "refused"),
        (UserError("refused"), NoAnswer("x"), UserError, "refused"),
        (NoAnswer("x"), ZeroDivisionError("bug"), RankFailedError, "rank 1: ZeroDivisionError: bug"),
        (ZeroDivisionError("bug"), UserError("refused"), ZeroDivisionError, "bug"),
    ],
)
def test_all_ranks_raise_the_same_kind(
    monkeypatch: pytest.MonkeyPatch, mine: Exception | None, other: Exception | None, kind: type, words: str
) -> None:
    """For some kinds training goes on, which all ranks must do or none."""

    def gather(found: list[object], own: object, group: object) -> None:
        found[:] = [own, (None, *_told(other, 1))]

    def work() -> None:
        if mine is not None:
            raise mine

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(kind) as raised:
        together(Process(world_size=2), work, "folder")
    assert (type(raised.value), str(raised.value)) == (kind, words)


def outcome(process: Process, where: str, copies: Path, breaks: bool) -> tuple[str, str, list[str]]:
    """How saving and reading end, and what losses are told; rank 1's machine has no temporary folder if it `breaks`."""
    run, before = SmallRun(process, engine_config(1), "clip"), tempfile.tempdir
    lost: list[str] = []
    store = CheckpointStore(where.format(rank=process.rank), process=process, guard=Guard(on_loss=lost.append))
    try:
        tempfile.tempdir = "/nowhere" if breaks and process.rank == 1 else str(copies)
        store.save(1, run.engine, run.task.tensors(), {})
        checkpoint = store.latest()
        assert checkpoint is not None
        checkpoint.restore(run.engine, process)
    except (UserError, RankFailedError, FileNotFoundError) as error:
        return type(error).__name__, str(error), lost
    finally:
        tempfile.tempdir = before
        store.leave()
        run.engine.close()
    return "", "", lost


@pytest.mark.timeout(240)
def test_two_ranks_save_into_a_store_and_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    store = f"{SharedStore.protocol}://{tmp_path}"
    assert run_ranks(outcome, 2, f"{store}/run", tmp_path / "copies", False, timeout=150) == [("", "", [])] * 2
    assert {path.name for path in (tmp_path / "run/step_00000001").iterdir()} >= {"engine_1.safetensors", "COMPLETE"}
    assert not list((tmp_path / "copies").iterdir())
    found = run_ranks(outcome, 2, f"{store}/no", tmp_path / "copies", True, timeout=60)
    assert [kind for kind, *_ in found] == ["RankFailedError", "FileNotFoundError"]
    assert all("No such file or directory: '/nowhere/" in text for _, text, _ in found)
    assert all(lost == [] for *_, lost in found), "both answered, and both are told before the next step"


SILENT = 2.0


def cleared_up_late(process: Process, where: str) -> tuple[list[str], list[int]]:
    """What a rank is told, and which of two saves count: the store does not answer at the first, after which rank 0
    clears up for longer than any of them may be silent."""
    told: list[str] = []
    checks: list[float] = []

    def check() -> None:
        checks.append(time.monotonic())
        if len(checks) == 2:  # the first is that before the save
            time.sleep(2.5 * SILENT)

    def strike(name: str) -> None:
        if "step_00000001" in name:
            raise TimeoutError("no answer came")

    store = CheckpointStore(
        where, process=process, guard=Guard(check=check, silent_seconds=SILENT, on_loss=told.append)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "_PAUSES", ())
        patch.setattr("pipeline.together._TURN_SECONDS", 0.1)
        patch.setattr(TroubledStore, "trouble", staticmethod(strike))
        try:
            store.begin(1, new_engine(), {}, {})
            store.begin(2, new_engine(), {}, {})
            store.finish()
        finally:
            store.leave()
    return told, [saved.step for saved in store.place.saved()]


@pytest.mark.timeout(240)
def test_a_save_without_an_answer_is_left_out_by_all_ranks_however_long_one_clears_up_after_it(tmp_path: Path) -> None:
    found = run_ranks(cleared_up_late, 2, f"{TroubledStore.protocol}://{tmp_path}/run", timeout=60)
    assert found == [([], [2])] * 2


def left_while_written(process: Process, where: str) -> list[int]:
    """Which saves count once the store is let go of, where that waits longer than for ranks that may be silent."""
    store = CheckpointStore(where, process=process, guard=Guard(silent_seconds=30.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.checkpoint._LEAVING_SECONDS", 0.0)
        patch.setattr("pipeline.together._TURN_SECONDS", 0.1)
        patch.setattr(TroubledStore, "trouble", staticmethod(lambda name: time.sleep(0.1)))
        store.begin(1, new_engine(), {}, {})
        store.leave()
    return [saved.step for saved in store.place.saved()]


@pytest.mark.timeout(240)
def test_what_all_ranks_still_write_when_training_ends_by_an_error_becomes_whole(tmp_path: Path) -> None:
    assert run_ranks(left_while_written, 2, f"{TroubledStore.protocol}://{tmp_path}/run", timeout=60) == [[1]] * 2


@pytest.mark.timeout(240)
def test_machines_that_see_different_folders_are_told_so(tmp_path: Path) -> None:
    found = run_ranks(outcome, 2, f"{tmp_path}/{{rank}}", tmp_path, False, timeout=60)
    assert [kind for kind, *_ in found] == ["UserError"] * 2
    assert "is not the same folder for all workers: rank 1 on " in found[0][1]
