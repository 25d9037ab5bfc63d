"""Mistakes in `trim`: one line, exit code 2, nothing begun."""

from pathlib import Path

import pytest

from launch.cli import main

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trim.method", "nothing"], "nothing"),
        (["--trim.method", "ftkd", "--trim.targets", "[2.0]"], "must hold 1.0"),
        (["--trim.evit.layer", "[1]"], "layer"),
        (["--take_from", "/nowhere"], "holds no run"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", TINY, "--out", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1, told
    assert not (tmp_path / "run/data").exists()
