"""Order under fire: real processes that are killed, with other numbers of them after each restart."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.data.quarantine import read_quarantine
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.process import Process
from tests.pipeline.data import restart_job
from tests.pipeline.data.samples import Listed, spoil

SAMPLES, EPOCHS, KILLS = 2400, 3, 30
STEPS = EPOCHS * (2 * SAMPLES // restart_job.BATCH)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Shards of uneven length, the last but one cut short in its middle, with eleven pictures that are none."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    pictures = [cv2.imencode(".jpg", cv2.resize(one, (40 + 6 * n, 96)))[1].tobytes() for n, one in enumerate(coarse)]
    records = [
        Record(
            key=f"s{n}",
            source="t",
            id=str(n),
            images={"": pictures[n * 40 // SAMPLES]},
            captions=[f"caption {k} of {n % 50}" for k in range(2)],
        )
        for n in range(SAMPLES)
    ]
    folder = tmp_path / "split"
    # By bytes: so pictures of other sizes give shards of other lengths.
    write_split(
        Listed(records),
        folder,
        name="x",
        fingerprint="f",
        layout=Layout(shard_samples=500, shard_bytes=1 << 20),
        workers=1,
    )
    for row in rng.choice(SAMPLES, 11, replace=False).tolist():
        spoil(folder, row)
    shard = sorted(folder.glob("*.tar"))[-2]
    os.truncate(shard, shard.stat().st_size // 2 // 512 * 512 + 100)
    return folder


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    Tokenizer.train([f"caption {k} of {n}" for n in range(50) for k in range(2)], TokenizerConfig(vocab_size=120)).save(
        tmp_path / "tokenizer"
    )
    return tmp_path / "tokenizer"


class Job:
    """The ranks of one start."""

    def __init__(self, split: Path, tokenizer: Path, out: Path, world: int, workers: int) -> None:
        store = out / f"store-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "tests.pipeline.data.restart_job", *map(str, (split, tokenizer, out, store))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.ranks = [
            subprocess.Popen(
                [*command, *map(str, (rank, world, workers, STEPS))], env=environment, stderr=subprocess.PIPE
            )
            for rank in range(world)
        ]

    def wait(self, seconds: float) -> list[int]:
        """Exit codes; a rank that does not end in time fails the test, after which none is left."""
        try:
            deadline = time.monotonic() + seconds
            return [rank.wait(max(0.1, deadline - time.monotonic())) for rank in self.ranks]
        finally:
            for rank in self.ranks:
                rank.kill()
                rank.wait()
                assert rank.stderr is not None
                rank.stderr.close()


def lines(out: Path) -> Iterator[dict]:
    for path in sorted(out.glob("rank-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                yield json.loads(line)
            except ValueError:  # empty, or cut short by a kill
                assert not line.endswith(b"}")


def undisturbed(split: Path, tokenizer: Path) -> tuple[list[list[list[str]]], set[tuple[str, int]]]:
    """The content of every step, and the samples that cannot be used, by one process that loads by itself."""
    batches = restart_job.loader(
        split, Tokenizer.load(tokenizer), Process(), workers=0, steps=STEPS, start=0, out=None
    )  # fmt: skip
    steps, skipped = [], set[tuple[str, int]]()
    for batch in batches:
        steps.append(restart_job.content(batch))
        skipped.update((skip.shard, skip.number) for skip in batch.skipped)
    return steps, skipped


def wait_for_steps(job: Job, out: Path, begin: int) -> None:
    deadline = time.monotonic() + 120
    while restart_job.steps_done(out) == begin:
        assert all(rank.poll() is None for rank in job.ranks), "a rank ended by itself"
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thirty_kills_with_other_ranks_and_workers_each_time_give_the_sequence_of_an_undisturbed_run(
    split: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    expected, bad = undisturbed(split, tokenizer_folder)
    assert len(set(ShardFolder(split).shard_rows)) > 2 and len(bad) > 50
    out, dice = tmp_path / "out", random.Random(1)
    out.mkdir()
    for kill in range(KILLS):
        world, workers = 1 + kill % 4, dice.randrange(4)
        begin = restart_job.steps_done(out)
        job = Job(split, tokenizer_folder, out, world, workers)
        wait_for_steps(job, out, begin)
        time.sleep(dice.uniform(0, 0.35))
        victims = job.ranks if dice.random() < 0.5 else [dice.choice(job.ranks)]
        for rank in victims:
            rank.kill()
        codes = job.wait(60)
        assert all(codes), "a rank whose peer was killed must not end well"
        print(f"kill {kill}: {world} ranks, {workers} workers, steps {begin} to {restart_job.steps_done(out)}")
    assert restart_job.steps_done(out) < STEPS, "the run was over before the last kill"
    assert Job(split, tokenizer_folder, out, 4, 1).wait(600) == [0, 0, 0, 0]

    told: dict[int, set[int]] = {}
    for line in lines(out):
        share = restart_job.BATCH // line["world"]
        begin = line["rank"] * share
        assert line["samples"] == expected[line["step"]][begin : begin + share]
        told.setdefault(line["step"], set()).update(range(begin, begin + share))
    assert told == {step: set(range(restart_job.BATCH)) for step in range(STEPS)}
    listed = [(line["shard"], line["number"]) for line in read_quarantine(out / "quarantine")]
    assert sorted(listed) == sorted(bad)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_ranks_with_uneven_and_damaged_shards_end_at_the_same_step(
    split: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert Job(split, tokenizer_folder, out, 4, 1).wait(600) == [0, 0, 0, 0]
    last = {rank: max(line["step"] for line in lines(out) if line["rank"] == rank) for rank in range(4)}
    assert last == dict.fromkeys(range(4), STEPS - 1)
