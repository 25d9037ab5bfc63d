"""Checkpoints are written while training goes on, into folders and stores, by rules; what fails is said by all."""

import errno
import shutil
import subprocess
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from data_prep.errors import DiskFull, UserError
from pipeline.checkpoint import CheckpointConfig, CheckpointStore
from pipeline.checkpoint_places import forget_all
from pipeline.engine import Engine
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks
from tests.pipeline.stores import SlowStore, SmallStore, emptied
from tests.pipeline.test_checkpoint import ONE, new_engine, save, step


def restored(store: CheckpointStore) -> tuple[Engine, int]:
    checkpoint = store.latest()
    assert checkpoint is not None
    engine = new_engine(seed=9)
    checkpoint.restore(engine, ONE)
    return engine, checkpoint.step


def equal(one: Engine, other: Engine) -> bool:
    mine, theirs = one.weights(), other.weights()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_steps_go_on_while_a_checkpoint_is_written_and_are_not_in_it() -> None:
    SlowStore.gate.clear()
    store, engine = CheckpointStore(emptied(SlowStore)), new_engine()
    step(engine)
    as_it_was = new_engine()
    as_it_was.module.load_state_dict(engine.weights())
    store.begin(1, engine, {}, {})
    for _ in range(3):
        step(engine)
    assert store.latest() is None and not store.failed
    SlowStore.gate.set()
    store.finish()
    again, number = restored(store)
    assert number == 1
    assert equal(again, as_it_was) and not equal(again, engine)


def test_a_second_one_waits_for_the_first() -> None:
    SlowStore.gate.set()
    store, engine = CheckpointStore(emptied(SlowStore)), new_engine()
    for number in range(1, 5):
        step(engine)
        store.begin(number, engine, {"n": torch.tensor(number)}, {"n": number})
    store.finish()
    assert equal(restored(store)[0], engine)
    assert sorted(fsspec.filesystem("slow").ls("/bucket/run", detail=False)) == [
        "/bucket/run/step_00000003",
        "/bucket/run/step_00000004",
    ]


@pytest.mark.parametrize("url", ["memory://checkpoints/run", "file://{tmp_path}/run", "{tmp_path}/run"])
def test_any_place_keeps_checkpoints(url: str, tmp_path: Path) -> None:
    where = url.format(tmp_path=tmp_path)
    store, engine = CheckpointStore(where, CheckpointConfig(keep_last=1)), new_engine()
    for number in (1, 2, 2):
        step(engine)
        store.save(number, engine, {"queue": torch.arange(3)}, {"note": "é"})
    checkpoint = CheckpointStore(where).latest()
    assert checkpoint is not None and checkpoint.step == 2
    again = new_engine(seed=5)
    tensors, values = checkpoint.restore(again, ONE)
    assert equal(again, engine) and tensors["queue"].tolist() == [0, 1, 2] and values == {"note": "é"}
    assert [saved.step for saved in store.place.saved()] == [2]
    folder = where.rpartition("/")[0]
    forget_all(folder, ["another"])
    assert store.latest() is not None, "it is of no stage of this run"
    forget_all(folder, ["another", "run"])
    assert store.latest() is None


def test_an_s3_server_keeps_checkpoints(s3: str) -> None:
    store, engine = CheckpointStore(s3), new_engine()
    store.save(3, engine, {}, {})
    again, number = restored(CheckpointStore(s3))
    assert number == 3 and equal(again, engine)


def test_uploads_without_a_mark_do_not_count_and_go_at_the_next_save() -> None:
    store, engine = CheckpointStore(emptied(SmallStore)), new_engine()
    store.save(1, engine, {}, {})
    store.save(2, engine, {}, {})
    fs = fsspec.filesystem("small")
    fs.rm_file("/bucket/run/step_00000002/COMPLETE")
    assert restored(store)[1] == 1
    store.save(3, engine, {}, {})
    assert [saved.step for saved in store.place.saved()] == [3, 1]
    assert "/bucket/run/step_00000002" not in fs.ls("/bucket/run", detail=False)


def test_a_store_that_is_full_is_the_users_error_and_the_last_one_stays() -> None:
    url = emptied(SmallStore)
    store, engine = CheckpointStore(url), new_engine()
    store.save(1, engine, {}, {})
    SmallStore.room = sum(entry.size for entry in SmallStore.store.values()) + 1000
    try:
        store.begin(2, engine, {"big": torch.zeros(1000)}, {})
        with pytest.raises(UserError, match="quota is used up") as caught:
            store.begin(3, engine, {}, {})
        assert "\n" not in str(caught.value)
    finally:
        SmallStore.room = 1 << 30
    assert restored(store)[1] == 1
    store.save(3, engine, {}, {})
    assert restored(store)[1] == 3


def test_a_full_store_may_be_gone_on_with_but_not_at_the_end() -> None:
    url = emptied(SmallStore)
    store, engine = CheckpointStore(url, CheckpointConfig(path=url, if_full="go_on")), new_engine()
    SmallStore.room = 0
    try:
        store.begin(1, engine, {"big": torch.zeros(1000)}, {})
        store.begin(2, engine, {"big": torch.zeros(1000)}, {})
        store.finish(must=False)
        assert not store.has_any  # so that nobody goes back to it
        store.begin(3, engine, {"big": torch.zeros(1000)}, {})
        with pytest.raises(UserError, match="quota is used up"):
            store.finish()
    finally:
        SmallStore.room = 1 << 30
    store.save(4, engine, {}, {})
    assert store.has_any and restored(store)[1] == 4


def test_a_store_in_memory_is_refused_for_several_processes() -> None:
    with pytest.raises(UserError, match="seen by one process only, not by 2"):
        CheckpointStore("memory://x", process=Process(world_size=2))
    with pytest.raises(UserError, match="nothing here can write to nowhere://"):
        CheckpointStore("nowhere://x")


def test_checkpoints_of_another_training_are_not_gone_on_from(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, fingerprint="a").save(1, new_engine(), {}, {})
    assert CheckpointStore(tmp_path, fingerprint="a").latest() is not None
    with pytest.raises(UserError, match=r"another configuration \(step_00000001\).*--checkpoint\.path.*--fresh"):
        CheckpointStore(tmp_path, fingerprint="b").latest()


def test_the_best_stay_by_a_metric_that_must_be_there(tmp_path: Path) -> None:
    store, engine = CheckpointStore(tmp_path, CheckpointConfig(keep_last=1, keep_best=1)), new_engine()
    for number, loss in enumerate((3.0, 1.0, 2.0), 1):
        store.begin(number, engine, {}, {}, {"loss": loss})
    store.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    other = CheckpointStore(tmp_path, CheckpointConfig(keep_best=1, best_metric="loss/itc"))
    with pytest.raises(UserError, match="best_metric=loss/itc is not logged; choose one of loss, lr"):
        other.begin(4, engine, {}, {}, {"loss": 1.0, "lr": 0.1})


def test_scores_are_no_part_of_what_keep_best_asks_for(tmp_path: Path) -> None:
    store, engine = CheckpointStore(tmp_path, CheckpointConfig(keep_best=1)), new_engine()
    store.begin(1, engine, {}, {}, {}, {"validation/accuracy": 50.0})  # all updates since were left out
    store.begin(2, engine, {}, {}, {"loss": 1.0}, {"validation/accuracy": 60.0})
    store.finish()
    saved = {one.step: one.metrics for one in store.place.saved()}
    assert saved == {1: {"validation/accuracy": 50.0}, 2: {"loss": 1.0, "validation/accuracy": 60.0}}
    with pytest.raises(UserError, match=r"best_metric=loss is not logged; choose one of lr$"):
        store.begin(3, engine, {}, {}, {"lr": 1.0}, {"loss": 1.0})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    done = subprocess.run(words, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("only root may mount a small disk; the test with a limit on the file size stands for this one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_runs_full_keeps_the_last_one_and_is_gone_on_with_once_there_is_room(small_disk: Path) -> None:
    store, engine = CheckpointStore(small_disk / "run"), new_engine()
    save(store, 1, engine)
    big = {"big": torch.zeros(60_000)}
    with pytest.raises(DiskFull, match=r"No space left on device: 0\.3 MB needed, 0\.\d free; free some space"):
        store.begin(2, engine, big, {})  # at once, before another step is done
    store.finish()
    assert [path.name for path in (small_disk / "run").iterdir()] == ["step_00000001"]
    store.config = CheckpointConfig(if_full="go_on", path="elsewhere")  # as if another program had filled it meanwhile
    store.begin(2, engine, big, {})
    deadline = time.monotonic() + 20
    while not store.failed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.failed
    with pytest.raises(UserError, match="free some space"):
        store.finish()
    assert [path.name for path in (small_disk / "run").iterdir()] == ["step_00000001"]
    assert restored(store)[1] == 1
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    store.save(2, engine, big, {})
    assert restored(store)[1] == 2


def test_a_disk_that_does_not_say_how_much_fits_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, engine = CheckpointStore(tmp_path), new_engine()

    def silent(_: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", silent)
    save(store, 1, engine)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total free")(0, 0))
    save(store, 2, engine)
    assert restored(store)[1] == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total free")(1000, 10))
    (tmp_path / "step_00000001.old").mkdir()  # it goes before the next one is written
    save(store, 3, engine)
    with pytest.raises(DiskFull, match=r"MB needed, 0\.0 free"):
        save(store, 4, engine)
    assert restored(store)[1] == 3


def steps_until_told(process: Process, folder: Path) -> tuple[int, str]:
    """Steps while a checkpoint of rank 1 cannot be written; when all are told, and what."""
    import resource

    from pipeline.clock import Clock
    from tests.pipeline.zero import SmallRun, engine_config

    run, store = SmallRun(process, engine_config(1), "clip"), CheckpointStore(folder, process=process)
    clock = Clock(1000, None, 1000.0)
    store.save(0, run.engine, {}, {})  # the ranks meet in a file, which the limit must let grow before
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if process.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        store.begin(1, run.engine, {}, {})
        for number in range(1000):
            if clock.tick(number, store.failed).failed:
                store.finish()
            run.step()
    except UserError as error:
        return number, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        store.leave()
        run.engine.close()
    return number, "nothing"


@pytest.mark.timeout(240)
def test_what_fails_in_the_background_is_said_by_all_ranks_at_the_same_step(tmp_path: Path) -> None:
    results = run_ranks(steps_until_told, 2, tmp_path, timeout=150)
    assert results[0] == results[1]
    assert "free some space" in results[0][1]
