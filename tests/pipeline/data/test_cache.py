"""The cache of blocks: whole or absent, bounded, shared, and not to be poisoned."""

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path

import pytest

from data_prep.errors import UserError
from pipeline.data.cache import BlockCache, Key

SIZE = 1000


def block(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=10).digest() * (SIZE // 10)


def key(number: int, file: str = "ab" * 16) -> Key:
    return Key(file, number)


def used(folder: Path) -> int:
    total = 0
    for path in (folder / "blocks").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # another process evicts
            total += path.stat().st_size
    return total


def age(cache: BlockCache, number: int, seconds: float) -> None:
    path = cache._path(key(number))
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_what_is_put_is_read_by_everybody(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * SIZE)
    assert cache.read(key(1), 0, SIZE, SIZE) is None and not cache.has(key(1))
    cache.put(key(1), block(1))
    for other in (cache, BlockCache(tmp_path, 10 * SIZE), pickle.loads(pickle.dumps(cache))):
        assert other.read(key(1), 0, SIZE, SIZE) == block(1)
        assert other.read(key(1), 10, 20, SIZE) == block(1)[10:20]
    assert cache.read(key(1, "cd" * 16), 0, SIZE, SIZE) is None
    assert cache.usage() == used(tmp_path) == SIZE


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * SIZE)
    for number in range(10):
        cache.put(key(number), block(number))
        age(cache, number, 1000 - number)
    assert cache.read(key(0), 0, 1, SIZE) == block(0)[:1]  # and so it is used just now
    for number in range(10, 14):
        cache.put(key(number), block(number))
        assert used(tmp_path) <= 10 * SIZE
    assert cache.has(key(0)) and cache.has(key(13)) and not cache.has(key(1))
    assert cache.usage() == used(tmp_path)


def test_a_block_that_is_evicted_while_it_is_read_is_read_to_its_end_or_fetched_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, SIZE)
    cache.put(key(1), block(1))
    handle = os.open(cache._path(key(1)), os.O_RDONLY)
    cache.put(key(2), block(2))
    assert not cache.has(key(1)) and os.pread(handle, SIZE, 0) == block(1)
    os.close(handle)
    assert cache.read(key(1), 0, SIZE, SIZE) is None


def test_a_block_above_the_limit_is_not_kept_and_told_once(tmp_path: Path, caplog) -> None:
    cache = BlockCache(tmp_path, SIZE - 1)
    for number in range(3):
        cache.put(key(number), block(number))
    assert used(tmp_path) == 0 and cache.usage() == 0
    assert [record.message for record in caplog.records] == [
        f"blocks are not kept in loader.cache_dir={tmp_path}: loader.cache_gib leaves no room for {SIZE} bytes"
    ]


@pytest.mark.parametrize("damage", [b"", b"short", block(1) + b"more"])
def test_a_block_of_another_size_is_removed(tmp_path: Path, damage: bytes, caplog) -> None:
    cache = BlockCache(tmp_path, 10 * SIZE)
    cache.put(key(1), block(1))
    Path(cache._path(key(1))).write_bytes(damage)
    assert cache.read(key(1), 0, 4, SIZE) is None
    assert not cache.has(key(1)) and "it is fetched again" in caplog.text


def test_a_count_that_is_lost_or_wrong_is_made_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * SIZE)
    for number in range(8):
        cache.put(key(number), block(number))
    os.truncate(tmp_path / "usage", 0)
    cache.put(key(8), block(8))
    assert cache.usage() == used(tmp_path) == 9 * SIZE
    (tmp_path / "usage").write_bytes((999 * SIZE).to_bytes(8, "little"))
    cache.put(key(9), block(9))
    assert cache.usage() == used(tmp_path) == 9 * SIZE  # what the limit leaves: nine tenths


def test_what_dead_writers_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * SIZE)
    cache.put(key(0), block(0))
    dead, alive = (Path(f"{cache._path(key(0))}.{pid}.x.tmp") for pid in (1, 2))
    dead.write_bytes(bytes(SIZE))
    alive.write_bytes(bytes(SIZE))
    os.utime(dead, (1, 1))
    os.truncate(tmp_path / "usage", 0)
    for number in range(1, 6):
        cache.put(key(number), block(number))
    assert not dead.exists() and alive.exists() and used(tmp_path) <= 4 * SIZE


def test_a_claim_holds_against_other_processes_until_it_is_given_up(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * SIZE)
    code = "import sys; from pipeline.data.cache import *; c = BlockCache(sys.argv[1], 10000)\n"
    code += "with c.claim([Key('ab' * 16, n) for n in range(3)]) as got: print([k.block for k in got])"

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        ).stdout.strip()

    with cache.claim([key(1)]) as got:
        assert got == [key(1)]
        BlockCache(tmp_path, 10 * SIZE).put(key(7), block(7))  # another user in this process leaves the claim alone
        assert other() == "[0, 2]"
    assert other() == "[0, 1, 2]"


def test_a_disk_that_takes_not_even_the_count_is_no_error(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk, on which not even 8 bytes may find room."""
    code = "import resource, sys; from pipeline.data.cache import *; c = BlockCache(sys.argv[1], 10000)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
    code += "for n in range(2): c.put(Key('ab' * 16, n), bytes(1000)); print(c.has(Key('ab' * 16, n)))\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
    code += "c.put(Key('ab' * 16, 2), bytes(1000)); print(c.has(Key('ab' * 16, 2)), c.usage())\n"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "True", "1000"], done.stderr
    assert done.stderr.count("blocks are not kept") == 1


def test_what_is_not_ours_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 2 * SIZE)
    (tmp_path / "blocks" / "README").write_text("notes")
    for number in range(4):
        cache.put(key(number), block(number))
    assert (tmp_path / "blocks" / "README").exists() and used(tmp_path) <= 2 * SIZE


def test_a_block_that_cannot_be_opened_is_not_there(tmp_path: Path, caplog) -> None:
    cache = BlockCache(tmp_path, 2 * SIZE)
    (tmp_path / "blocks" / "ab").write_text("a file where a folder should be")
    cache.put(key(1), block(1))
    assert cache.read(key(1), 0, SIZE, SIZE) is None and cache.usage() == 0
    assert "blocks are not kept" in caplog.text


def test_a_folder_that_is_removed_while_it_is_used_is_no_error(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 2 * SIZE)
    for number in range(6):
        cache.put(key(number), block(number))
        if number % 2:
            shutil.rmtree(tmp_path / "cache")
    assert cache.read(key(5), 0, SIZE, SIZE) is None


def test_a_folder_that_cannot_be_used_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"loader\.cache_dir=.* cannot be used"):
        BlockCache(tmp_path / "file", SIZE)


def _use(folder: str, seed: int, ready) -> None:
    """Reads and writes blocks for ever."""
    cache = BlockCache(folder, 20 * SIZE)
    ready.set()
    number = seed
    while True:
        number = (number * 7 + 3) % 60
        with cache.claim([key(number)]):
            found = cache.read(key(number), 0, SIZE, SIZE)
            if found is None:
                cache.put(key(number), block(number))
            elif found != block(number):
                os._exit(3)


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_processes_leave_nothing_that_blocks_or_poisons(tmp_path: Path, rounds: int) -> None:
    context = multiprocessing.get_context("fork")
    survivor_ready = context.Event()
    survivor = context.Process(target=_use, args=(str(tmp_path), 1, survivor_ready), daemon=True)
    survivor.start()
    assert survivor_ready.wait(20)
    try:
        for turn in range(rounds):
            ready = context.Event()
            victim = context.Process(target=_use, args=(str(tmp_path), turn, ready), daemon=True)
            victim.start()
            assert ready.wait(20)
            time.sleep(0.03)
            assert victim.is_alive()
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            assert used(tmp_path) <= 20 * SIZE
        assert survivor.is_alive()
    finally:
        survivor.kill()
        survivor.join()
    cache = BlockCache(tmp_path, 20 * SIZE)
    with cache.claim([key(number) for number in range(60)]) as got:
        assert len(got) == 60
    for number in range(60):
        assert cache.read(key(number), 0, SIZE, SIZE) in (None, block(number))
    for number in range(60, 90):
        cache.put(key(number), block(number))
    assert 0 < used(tmp_path) <= 20 * SIZE
