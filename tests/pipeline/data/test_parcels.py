"""What comes from worker to trainer, and what is left where one of the two is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.batch import ImageTextBatch, LoadWork, Skip
from pipeline.data.loader import LoaderConfig, StepLoader, train_loader
from pipeline.data.parcels import Slots
from pipeline.data.text import Tokenizer
from pipeline.process import Process
from tests.pipeline.data.samples import MakeSplit

CONFIG = LoaderConfig(height=12, width=16, streams=2, window=4, workers=1, prefetch=1, max_tokens=8)
ROOT = Path(__file__).parents[3]
PIPE_BUF = 4096
MakeLoader = Callable[..., StepLoader]


@pytest.fixture
def loader_of(make_split: MakeSplit, tokenizer: Tokenizer) -> MakeLoader:
    path = make_split(12)

    def make(steps: int = 6, **options) -> StepLoader:
        return train_loader(
            [(path, 1.0)], text="captions", unit="pair", config=replace(CONFIG, **options), tokenizer=tokenizer,
            seed=0, global_batch=4, process=Process(), steps=steps,
        )  # fmt: skip

    return make


@pytest.fixture
def job(make_split: MakeSplit, tokenizer: Tokenizer, tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs `loading_job` and gives what it says."""
    tokenizer.save(tmp_path / "tokenizer")
    split = make_split(40)

    def run(way: str) -> list[str]:
        words = [sys.executable, "-m", "tests.pipeline.data.loading_job", way, str(split), str(tmp_path / "tokenizer")]
        with open(tmp_path / "said", "w") as file:  # no pipe, which a worker that lives on would keep open
            subprocess.run(words, cwd=ROOT, stdout=file, timeout=120, check=False)
        return (tmp_path / "said").read_text().splitlines()

    return run


def batch_of(size: int, letters: int) -> ImageTextBatch:
    rng = np.random.default_rng(size)
    words = [f"{number} " + "x" * letters for number in range(size)]
    return ImageTextBatch(
        pixels=torch.from_numpy(rng.integers(0, 256, (size, 3, 4, 5), dtype=np.uint8)),
        token_ids=torch.arange(size * 7).view(size, 7),
        token_mask=torch.arange(size * 7).view(size, 7) % 2 == 0,
        labels=torch.ones(size, dtype=torch.int64),
        sample_ids=torch.arange(size),
        draw_seeds=torch.arange(size) << 50,
        texts=words,
        captions=[[word] for word in words],
        keys=words,
        groups=words,
        clusters=words,
        skipped=[Skip("0.tar", 1, None, "why")],
        work=LoadWork(read=1.5),
    )


@pytest.mark.parametrize(("size", "letters"), [(3, 0), (2, 200_000), (0, 0)])
def test_a_parcel_is_the_batch_and_its_message_fits_in_one_write(size: int, letters: int) -> None:
    from multiprocessing.reduction import ForkingPickler

    slots = Slots(2, (3, 3, 4, 5))
    for step in range(5):
        batch = batch_of(size, letters + step)
        slots.pixels(step)[:size] = batch.pixels.numpy()
        parcel = slots.pack(step, batch)
        # What is longer may be torn where the writer is killed, and the reader waits for the rest for ever.
        assert len(ForkingPickler.dumps((step, parcel))) < PIPE_BUF // 4
        got = slots.unpack(parcel, pinned=False)
        slots.pixels(step)[:] = 0
        for name, value in vars(batch).items():
            other = getattr(got, name)
            assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name


def mappings() -> set[str]:
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:trimline" in line}


def test_slots_lie_in_memory_without_a_name_and_go_with_their_owner(loader_of: MakeLoader) -> None:
    """Containers often have 64 MB in /dev/shm; who writes beyond them dies of a bus error."""
    others = mappings()  # of tests before, which a failure's traceback may still hold
    batches = iter(loader_of(steps=12))
    next(batches)
    (mapped,) = mappings() - others
    size = int(mapped.split()[0].split("-")[1], 16) - int(mapped.split("-")[0], 16)
    assert 2 * 4 * 3 * 12 * 16 <= size <= 1 << 20
    del batches
    assert mapped not in mappings()


def test_two_iterators_of_one_loader_do_not_share_their_slots(loader_of: MakeLoader) -> None:
    expected = [batch.pixels for batch in loader_of(steps=12, workers=0)]
    loader = loader_of(steps=12)
    ahead = iter(loader)
    begin = [next(ahead).pixels for _ in range(5)]
    again = []
    for batch in loader:
        time.sleep(0.02)
        again.append(batch.pixels)
    rest = [batch.pixels for batch in ahead]
    for got in (again, begin + rest):
        assert all((one == two).all() for one, two in zip(got, expected, strict=True))


def test_an_iterator_that_is_left_early_harms_no_later_one(loader_of: MakeLoader) -> None:
    loader = loader_of(steps=12, prefetch=3)
    expected = [batch.pixels for batch in loader_of(steps=12, workers=0)]
    for taken in (1, 4):
        left = iter(loader)
        list(islice(left, taken))
        got = [batch.pixels for batch in loader]
        assert all((one == two).all() for one, two in zip(got, expected, strict=True))


def test_the_trainer_may_keep_batches(loader_of: MakeLoader) -> None:
    expected = list(loader_of(workers=0))
    for one, two in zip(list(loader_of()), expected, strict=True):
        assert (one.pixels == two.pixels).all() and (one.token_ids == two.token_ids).all()


def test_a_killed_worker_is_told_within_seconds_in_any_thread(job: Callable[[str], list[str]]) -> None:
    said = job("thread")
    assert len(said) == 3, "it still waits"
    kind, message, seconds = said
    assert kind == "WorkerLost" and float(seconds) < 10
    assert "was killed (SIGKILL)" in message and "loader.workers" in message


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_a_trainer_that_is_killed(job: Callable[[str], list[str]]) -> None:
    (worker,) = job("killed")
    end = time.monotonic() + 30  # they look for it every five seconds
    while is_alive(int(worker)):
        if time.monotonic() > end:
            os.kill(int(worker), 9)
            pytest.fail("the worker lives on without a trainer")
        time.sleep(0.2)


@pytest.mark.slow
def test_spawned_workers_give_the_same(job: Callable[[str], list[str]]) -> None:
    alone, spawned = job("spawn")
    assert alone == spawned
