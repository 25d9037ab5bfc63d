"""Where workers are, told while real workers stand still."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.board import Activity, StallWatch, WorkerBoard
from pipeline.data.loader import LoaderConfig, StepLoader, train_loader
from pipeline.process import Process
from tests.pipeline.data.samples import MakeSplit

CONFIG = LoaderConfig(height=12, width=16, streams=2, window=4, workers=0, max_tokens=8)
MakeLoader = Callable[..., StepLoader]


@pytest.fixture
def loader_of(make_split: MakeSplit, tokenizer) -> MakeLoader:
    path = make_split(12)

    def make(steps: int = 6, **options) -> StepLoader:
        return train_loader(
            [(path, 1.0)],
            text="captions",
            unit="pair",
            config=replace(CONFIG, **options),
            tokenizer=tokenizer,
            seed=0,
            global_batch=4,
            process=Process(),
            steps=steps,
        )

    return make


def _write(board: WorkerBoard) -> None:
    board.write(1, Activity.DECODING, 7, 2, 1 << 40)


def test_a_note_is_read_in_another_process_than_wrote_it() -> None:
    board = WorkerBoard(2)
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(board,))
    process.start()
    process.join(60)
    assert board.read(0).seconds is None
    note = board.read(1)
    assert (note.activity, note.step, note.source, note.row) == (Activity.DECODING, 7, 2, 1 << 40)
    assert note.seconds is not None and 0 <= note.seconds < 60


def _write_without_end(board: WorkerBoard) -> None:
    while True:
        for number in range(2):
            board.write(0, Activity.READING, number, number, number)


def test_a_note_is_never_read_in_halves() -> None:
    """Half a note names a row that its source may not have."""
    board = WorkerBoard(1)
    process = multiprocessing.get_context("fork").Process(target=_write_without_end, args=(board,), daemon=True)
    process.start()
    while board.read(0).seconds is None:
        time.sleep(0.001)
    end, torn = time.monotonic() + 1, 0
    while time.monotonic() < end:
        note = board.read(0)
        torn += note.seconds is None or not note.step == note.source == note.row
    process.kill()
    process.join()
    assert not torn


def test_the_board_says_what_is_read_and_decoded_now(loader_of: MakeLoader) -> None:
    loader = loader_of(steps=1)
    dataset, said = loader.dataset.inner, []
    assert dataset.where() == ["worker 0 has not begun"]
    folder, transform = dataset._folders[0], dataset._transform
    read = folder.read
    folder.read = lambda row: (said.append(dataset.where()), read(row))[1]
    dataset._transform = lambda *words: (said.append(dataset.where()), transform(*words))[1]
    batch = next(iter(loader))
    names = [f"{folder.place(row)} of {folder.path}, step 0, for 0 s" for row in batch.sample_ids.tolist()]
    assert said == [[f"worker 0 is {doing} {name}"] for doing in ("reading", "decoding") for name in names]
    assert dataset.where() == ["worker 0 is done with step 0, waiting for 0 s"]


def test_a_stall_is_told_and_ends_nothing(loader_of: MakeLoader, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_of(steps=40, workers=2, stall_seconds=0.3)
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    keys = [next(batches).keys, next(batches).keys]  # one of each worker: both have begun
    workers = [child for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)

    def awake() -> None:
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)

    timer = threading.Timer(1.5, awake)
    timer.start()
    with caplog.at_level(logging.WARNING):
        keys += [batch.keys for batch in batches]
    timer.join()
    told = [record.getMessage() for record in caplog.records]
    stalls = [line for line in told if line.startswith("no batch for")]
    assert len(stalls) >= 2  # again and again while it lasts
    assert all(f"worker {number} is " in line for line in stalls for number in range(2))
    assert any(line.startswith("the batch came after") for line in told)
    assert keys == [batch.keys for batch in loader_of(steps=40)]


def test_nothing_is_told_where_batches_come_and_the_thread_ends(
    loader_of: MakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        batches = iter(loader_of(stall_seconds=0.2))
        next(batches)
        assert [thread for thread in threading.enumerate() if thread.name == "stall watch"]
        time.sleep(0.5)  # the trainer takes its time: that is no stall
        list(batches)
    assert not caplog.records
    assert not [thread for thread in threading.enumerate() if thread.name == "stall watch"]


def test_no_watch_where_none_is_wanted(loader_of: MakeLoader) -> None:
    batches = iter(loader_of(stall_seconds=0))
    next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name == "stall watch"]
    with StallWatch(0, list) as watch:
        watch.waits()
        watch.goes_on()


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 3)])
def test_shared_slots_are_not_written_before_they_are_copied(
    loader_of: MakeLoader, workers: int, prefetch: int
) -> None:
    expected = [batch.pixels for batch in loader_of(steps=30)]
    got = []
    for batch in loader_of(steps=30, workers=workers, prefetch=prefetch):
        got.append(batch.pixels)
        if len(got) % 7 == 0:
            time.sleep(0.1)  # workers run as far ahead as they may
    assert all((one == two).all() for one, two in zip(got, expected, strict=True))


def test_times_travel_with_the_batch(loader_of: MakeLoader, tmp_path: Path) -> None:
    for workers in (0, 1):
        begin = time.perf_counter()
        batches = list(loader_of(workers=workers))
        spent = time.perf_counter() - begin
        for times in (batch.work for batch in batches):
            assert times.read > 0 and times.decode > 0 and times.text > 0
        assert sum(batch.work.read + batch.work.decode + batch.work.text for batch in batches) < spent
    part = batches[0].part(slice(2, 4))
    assert part.work.read == 0 and batches[0].part(slice(0, 2)).work == batches[0].work
