"""A million records: memory stays bounded, and the rate does not fall as the number grows.

Run it alone, for it measures: python -m pytest -s -m slow tests/data_prep/test_writer_scale.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, os, resource, sys, time
from pathlib import Path
from data_prep.clean import CleanConfig
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Tiny
if __name__ == "__main__":
    size = int(sys.argv[1])
    begin = time.perf_counter()
    account = write_split(
        Tiny(size), Path(sys.argv[2]), name="x", fingerprint="f", workers=2,
        layout=Layout(shard_samples=1000, order="s"), clean=CleanConfig(duplicates=True),
    )
    seconds = time.perf_counter() - begin
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, workers = (resource.getrusage(one).ru_maxrss / 1024 for one in who)
    print(json.dumps({
        "records": size, "seconds": seconds, "records_per_second": size / seconds, "own_mib": own,
        "largest_worker_mib": workers, "written": account["written"], "skipped": account["skipped"],
    }))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_records_in_bounded_memory_at_an_even_rate(tmp_path):
    figures = []
    for size in (10_000, 100_000, 1_000_000):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(size), str(tmp_path / str(size))],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        figures.append(json.loads(done.stdout))
        print(done.stdout)
        assert figures[-1]["written"] == size - size // 100
        assert figures[-1]["skipped"] == {"duplicate picture": size // 100}
        assert max(figures[-1]["own_mib"], figures[-1]["largest_worker_mib"]) < 1024
    # The machine's own speed may drift in between, but not so far.
    assert figures[2]["records_per_second"] > 0.6 * figures[1]["records_per_second"]
    assert figures[2]["own_mib"] < figures[0]["own_mib"] + 300
