"""The log that a command of hours keeps in its folder."""

from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.run_log import log_file


def test_a_mistake_of_ours_is_kept_whole_and_what_is_printed_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "launch.log"
    with pytest.raises(RuntimeError), log_file(path):
        print("of a library")
        raise RuntimeError("of ours")
    kept = path.read_text()
    assert "of a library" in kept and "Traceback" in kept and "RuntimeError: of ours" in kept
    assert capsys.readouterr().out == ""


def test_a_users_mistake_is_said_on_the_screen_only(tmp_path: Path) -> None:
    with pytest.raises(UserError), log_file(tmp_path / "launch.log"):
        raise UserError("wrong")
    assert not (tmp_path / "launch.log").exists()
