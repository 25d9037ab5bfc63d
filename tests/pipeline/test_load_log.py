"""What the log says of how the trainer is fed."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.data.batch import ImageTextBatch, LoadWork, Skip
from pipeline.data.quarantine import kind_of
from pipeline.load_log import LoadTally
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import small_batch


def batch_of(size: int, reasons: list[str], work: LoadWork) -> ImageTextBatch:
    skipped = [Skip("0.tar", number, None, reason) for number, reason in enumerate(reasons)]
    return ImageTextBatch(**{**vars(small_batch(size)), "skipped": skipped, "work": work})


def test_shares_and_times_a_sample_are_those_of_all_steps_together() -> None:
    tally = LoadTally()
    times = LoadWork(read=0.01, decode=0.04, text=0.002)
    tally.add(batch_of(4, [], times), wait=0.1, total=1.0)
    tally.add(batch_of(6, [], times), wait=0.5, total=1.0)
    assert tally.values() == {"data_wait": 0.3, "read_ms": 2.0, "decode_ms": 8.0, "text_ms": 0.4}


def test_what_was_fetched_is_told_where_anything_was() -> None:
    tally = LoadTally()
    tally.add(batch_of(4, [], LoadWork(hits=3, misses=1, fetched_bytes=1_500_000, failures=2)), wait=0, total=1)
    tally.add(batch_of(4, [], LoadWork(hits=4, misses=0)), wait=0, total=1)
    values = tally.over_processes(torch.device("cpu")).values()
    assert (values["cache_hits"], values["fetched_mb"], values["fetch_failures"]) == (0.875, 1.5, 2)


def test_skips_are_counted_by_what_reasons_have_in_common_and_bounded() -> None:
    tally = LoadTally()
    reasons = ["image too large: 9x9", "image too large: 8x9", "a member occurs twice"]
    tally.add(batch_of(4, reasons, LoadWork()), wait=0, total=1)
    assert tally.values()["skips"] == {"image too large": 2, "a member occurs twice": 1}
    many = [f"fault {number} \u732b" + "x" * 500 for number in range(50)]
    tally.add(batch_of(4, many, LoadWork()), wait=0, total=1)
    skips = tally.values()["skips"]
    assert (len(skips), sum(skips.values()), skips["other reasons"]) == (17, 53, 36)
    assert max(map(len, skips)) == 100
    assert kind_of("tar members are broken") == "tar members are broken"


def _whole(process: Process) -> dict[str, Any]:
    assert dist.get_world_size() == 2
    tally, rank = LoadTally(), process.rank
    reasons = [f"rank {rank}: one", "both"] + [f"{k} {rank} " + "\u732b" * 200 for k in range(20 * rank)]
    tally.add(batch_of(4, reasons, LoadWork(decode=0.1 + rank)), wait=float(rank), total=2.0)
    whole = tally.over_processes(torch.device("cpu"))
    return dict(vars(whole))


def test_all_processes_are_counted_together() -> None:
    for whole in run_ranks(_whole, 2):
        assert (whole["wait"], whole["total"], whole["samples"]) == (1.0, 4.0, 8)
        assert whole["work"]["decode"] == pytest.approx(1.2)
        assert (whole["skips"]["rank 0"], whole["skips"]["rank 1"], whole["skips"]["both"]) == (1, 1, 2)
        assert sum(whole["skips"].values()) == 24


def test_one_process_is_its_own_sum() -> None:
    tally = LoadTally()
    tally.add(batch_of(4, ["x: y"], LoadWork(text=0.25)), wait=0.5, total=1.0)
    assert tally.over_processes(torch.device("cpu")) == tally
