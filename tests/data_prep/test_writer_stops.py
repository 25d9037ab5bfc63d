"""Jobs that are killed, or whose disk runs full."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.executors import Processes
from data_prep.job import Layout
from data_prep.tars import list_members
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from tests.data_prep.samples import Plain, contents

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, split: Plain, **changes) -> dict:
    options = {"name": "plain", "fingerprint": "f", "layout": Layout(shard_samples=10), "workers": 1} | changes
    return write_split(split, folder, **options)


SCRIPT = """
import sys, time
from pathlib import Path
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Plain
class Slow(Plain):
    def records(self, start, stop):
        time.sleep(float(sys.argv[2]))
        yield from super().records(start, stop)
write_split(Slow(60), Path(sys.argv[1]), name="x", fingerprint="f", layout=Layout(shard_samples=5), workers=1)
"""


def run_script(script: str, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )


def test_killed_and_started_again_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    write_split(Plain(60), tmp_path / "whole", name="x", fingerprint="f", layout=Layout(shard_samples=5), workers=1)
    killed = run_script(SCRIPT, str(tmp_path / "killed"), "0.05")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("0*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("00000.tar")}
    assert kept
    assert not (tmp_path / "killed/index.json").exists()
    again = run_script(SCRIPT, str(tmp_path / "killed"), "0")
    assert (again.wait(60), again.stderr.read()) == (0, "")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was finished was kept


FULL_DISK = """
import sys
from pathlib import Path
from data_prep.errors import UserError
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Plain
try:
    # The third shard has large pictures and does not fit.
    sides = (8,) * 20 + (128,) * 5
    write_split(
        Plain(25, sides=sides), Path(sys.argv[1]), name="x", fingerprint="f", layout=Layout(shard_samples=10),
        workers=int(sys.argv[2]),
    )
except UserError as error:
    sys.stderr.write(str(error))
    sys.exit(2)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_one_clear_line_and_leaves_only_whole_shards(tmp_path, workers):
    # A limit on the file size is what an unprivileged test can have of a full disk.
    limit = 100_000
    full = run_script(
        FULL_DISK,
        str(tmp_path),
        workers,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, message = full.communicate(timeout=60)
    assert full.returncode == 2, message
    assert "free some space" in message
    assert len(message.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".parts", "00000.tar", "00001.tar"]
    sides = (8,) * 20 + (128,) * 5
    write(tmp_path, Plain(25, sides=sides))
    assert verify_folder(tmp_path) == []


def test_workers_of_a_killed_parent_end(tmp_path):
    script = """
import sys, time
from pathlib import Path
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Forever
layout = Layout(shard_samples=1)
write_split(Forever(sys.argv[1]), Path(sys.argv[1]), name="x", fingerprint="f", layout=layout, workers=2)
"""
    parent = run_script(script, str(tmp_path))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    parent.kill()
    parent.communicate()
    assert len(workers) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("duplicates", ["", "duplicates"])
def test_killed_at_ten_random_moments_and_resumed_gives_the_same_bytes(tmp_path, duplicates):
    """Twice ten: once plainly, once with the pass that looks for duplicates."""
    draw = random.Random(20 + len(duplicates))
    whole = run_script(KILLED, str(tmp_path / "whole"), duplicates)
    begin = time.monotonic()
    assert (whole.wait(120), whole.stderr.read()) == (0, "")
    seconds = time.monotonic() - begin
    expected = contents(tmp_path / "whole")
    kept = 0
    for kill in range(10):
        folder = tmp_path / f"killed{kill}"
        killed = run_script(KILLED, str(folder), duplicates)
        # Of the time after the start of Python and its imports, which takes about a third of it.
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        killed.kill()
        killed.communicate()
        trusted = {p.name for p in (folder / ".parts").glob("[0-9]*")} if folder.exists() else set()
        before = {p: p.stat().st_mtime_ns for p in folder.glob("*.tar") if p.stem in trusted}
        again = run_script(KILLED, str(folder), duplicates)
        assert (again.wait(120), again.stderr.read()) == (0, "")
        assert contents(folder) == expected, f"kill {kill}"
        assert {p: p.stat().st_mtime_ns for p in before} == before, "a finished shard was written again"
        kept += len(before)
    assert kept > 0


KILLED = """
import sys
from pathlib import Path
from data_prep.clean import CleanConfig
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.samples import Plain
if __name__ == "__main__":
    write_split(
        Plain(4000, sides=(8, 30, 60)), Path(sys.argv[1]), name="x", fingerprint="f", workers=2,
        layout=Layout(shard_samples=40, order="s"), clean=CleanConfig(duplicates=sys.argv[2] == "duplicates"),
    )
"""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    done = subprocess.run(words, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("only root may mount a small disk; the test with a limit on the file size stands for this one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_runs_full_keeps_whole_shards_and_goes_on_once_there_is_room(small_disk, tmp_path, workers):
    split = Plain(100, sides=(32,))
    with pytest.raises(UserError, match="free some space") as full:
        write(small_disk / "out", split, workers=workers)
    assert "\n" not in str(full.value)
    left = sorted((small_disk / "out").glob("*.tar"))
    assert 2 <= len(left) < 10
    for path in left:
        list_members(path)  # raises for one that is cut
    assert not list((small_disk / "out").glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    before = {path: path.stat().st_mtime_ns for path in left[:-1]}
    write(small_disk / "out", split)
    write(tmp_path / "whole", split)
    assert contents(small_disk / "out") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before


class Dying:
    """Work whose process is gone before it is done, as one that the kernel ends for want of memory."""

    def __call__(self, number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_writing_process_that_is_killed_is_one_clear_line():
    with pytest.raises(UserError, match="run the same command again"):
        list(Processes(2).map(Dying(), range(4)))
