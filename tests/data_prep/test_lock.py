"""One process per run folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.lock import FolderLock, holder

_HOLD = (
    "import sys, time; from pathlib import Path; from data_prep.lock import FolderLock\n"
    "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    other = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert holder(tmp_path) == other.pid
        with pytest.raises(UserError, match=f"in use by process {other.pid}"), FolderLock(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_a_folder_without_a_lock_has_no_holder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
