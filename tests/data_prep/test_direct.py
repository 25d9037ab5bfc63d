"""Files that go past the page cache hold what any other file would."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import direct
from data_prep.direct import DirectFile
from data_prep.files import atomic_file

CHUNK = 4 << 20


def pieces(sizes: list[int]) -> list[bytes]:
    return [hashlib.sha256(str(n).encode()).digest() * (size // 32) + bytes(size % 32) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [512, 0, 3 * 512],
        [CHUNK],
        [CHUNK - 1, 1],
        [CHUNK - 1, 2],
        [3 * CHUNK + 5, 7, 2 * CHUNK],
        [100_000] * 100,
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_all_bytes_are_there_whatever_the_pieces(
    sizes: list[int], known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(direct, "_DIRECT", 0)  # as where the system has no such flag
    path, data = tmp_path / "x", pieces(sizes)
    with DirectFile(path) as file:
        for piece in data:
            assert file.write(piece) == len(piece)
        file.flush()
        assert path.read_bytes() == b"".join(data)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_in_memory_where_the_flag_may_be_refused(tmp_path: Path) -> None:
    path = Path("/dev/shm") / f"trimline-{os.getpid()}"
    data = pieces([CHUNK + 700, 5])
    try:
        with atomic_file(path, appended=True) as file:
            for piece in data:
                file.write(piece)
        assert path.read_bytes() == b"".join(data)
    finally:
        path.unlink(missing_ok=True)


def test_one_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"precious"


SCRIPT = """
import resource, sys
from pathlib import Path
from data_prep.errors import UserError
from data_prep.files import atomic_file
resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 20, 9 << 20))
try:
    with atomic_file(Path(sys.argv[1]), appended=True) as file:
        for _ in range(int(sys.argv[2])):
            file.write(bytes(1 << 20))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("mebibytes", [10, 40])
def test_a_full_disk_is_told_and_leaves_nothing(mebibytes: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "x"), str(mebibytes)],
        capture_output=True, text=True, check=True, preexec_fn=_keep_running,
    )  # fmt: skip
    assert f"could not write {tmp_path / 'x'}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def _keep_running() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk


def test_what_fails_in_between_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "x", appended=True) as file:
        file.write(bytes(2 * CHUNK))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
