"""The search for the largest batch to its end, on memory that real processes take, each within its limit."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.scaling.limited import run_limited
from launch.scaling.probing import entry_of
from launch.scaling.trial import OK, outcome
from pipeline.measure.largest_batch import Bounds, Probe, search

# A model whose activations are all but all of its memory: every sample keeps WIDTH floats for each of LAYERS layers.
_UPDATES = """
import json, sys, torch
from pathlib import Path
from pipeline.log_facts import process_peak_bytes
from pipeline.measure.memory_limit import MemoryLimit
from pipeline.process import Process

folder, batch, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) or None
torch.set_num_threads(1)
weight = torch.ones(2**19, requires_grad=True)
with MemoryLimit(folder, Process(), limit) as watched:
    watched.forget_peak()
    for step in range(2):
        x_BD = torch.ones(batch, 2**19)
        for _ in range(4):
            x_BD = (x_BD * weight).sin()
        x_BD.sum().backward()
        del x_BD
        watched.step = step + 1
(folder / "result.json").write_text(json.dumps({"peak_bytes": process_peak_bytes()}))
"""
# Memory that is let go of goes back at once, as in the probes of `trimline scale`.
_EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
_SAMPLE = 2**19 * 4


def tried(folder: Path, batch: int, limit: int | None) -> dict[str, Any]:
    place = folder / str(batch)
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _UPDATES, str(place), str(batch), str(limit or 0)]
    ended = run_limited(command, place / "process.txt", 60.0, {**os.environ, **_EXACT})
    return outcome(place, ended, 60.0, limit)


@pytest.mark.timeout(120)
def test_what_is_found_fits_in_a_real_process_and_a_sample_more_does_not(tmp_path: Path) -> None:
    free = {batch: tried(tmp_path, batch, None) for batch in (2, 4)}
    small, large = (each["peak_bytes"] for each in free.values())
    sample = (large - small) / 2
    assert sample == pytest.approx(9 * _SAMPLE, rel=0.35)  # what the layers keep, and what backward needs at once
    limit, reasons = int(large + 4.5 * sample), dict[int, str]()

    def measure(batch: int) -> Probe:
        # The two that gave the limit lie far below it: they need not run again.
        found = free.get(batch) or tried(tmp_path, batch, limit)
        reasons[batch] = found["reason"]
        return Probe(batch, found["status"] == OK, found["peak_bytes"])

    found = search(measure, Bounds(limit_bytes=limit, first=(2, 4)))
    assert found.settled and found.largest is not None and found.next_up is not None
    assert (found.largest.batch, found.next_up.batch) == (8, 9)
    assert found.largest.peak_bytes <= limit < found.next_up.peak_bytes
    entry = entry_of("off", found, {}, reasons)
    assert entry["settled"] and entry["reason"].endswith("GiB that it may have")
    assert abs(entry["prediction_error"]) < 0.1
    record = json.loads((tmp_path / "9" / "over_memory.rank0.json").read_text())
    assert record["limit_bytes"] == limit and not (tmp_path / "9" / "result.json").exists()
