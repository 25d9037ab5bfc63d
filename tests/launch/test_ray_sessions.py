"""Ray's folders in the temporary folder: those of killed runs go, those of living ones stay, whatever their numbers."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_prep.lock import in_use, remove_left
from launch.ray_backend import _SESSION_PREFIX, _short_folder

ROOT = Path(__file__).resolve().parents[2]
_HOLD = """
import sys, time
from pathlib import Path
from data_prep.lock import in_use
with in_use(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(100)
"""


def session(parent: Path, pid: int) -> Path:
    """One that is an hour old, called after a process."""
    folder = parent / f"{_SESSION_PREFIX}{pid}-abcdefgh"
    (folder / "session_latest").mkdir(parents=True)
    os.utime(folder, (0, 0))
    return folder


def test_the_lock_and_not_the_number_tells_a_living_run_from_a_killed_one(tmp_path: Path) -> None:
    gone = 2**22 + 1  # no process of Linux has it: as a number of another container's
    living, stale, young = session(tmp_path, gone), session(tmp_path, os.getpid()), tmp_path / f"{_SESSION_PREFIX}1-x"
    young.mkdir()
    command = [sys.executable, "-c", _HOLD, str(living)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        remove_left(tmp_path, _SESSION_PREFIX)
        assert (living.is_dir(), stale.is_dir(), young.is_dir()) == (True, False, True)
        holder.kill()
        holder.wait()
    remove_left(tmp_path, _SESSION_PREFIX)
    assert not living.exists() and young.is_dir()


def test_a_link_that_is_called_like_a_session_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    os.utime(mine, (0, 0))
    (tmp_path / f"{_SESSION_PREFIX}1-link").symlink_to(mine)
    remove_left(tmp_path, _SESSION_PREFIX)
    assert mine.is_dir()
    with in_use(mine):
        pass


def test_rays_sockets_have_room_below_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = f"/{_SESSION_PREFIX}4194304-abcdefgh/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    for folder in ("/tmp", "/var/tmp", "/var/tmp/me", "/var/tmp/somebody", "/scratch/users/somebody/tmp"):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert len(f"{_short_folder()}{rest}") <= 107
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp/me")
    assert _short_folder() == Path("/var/tmp/me")
