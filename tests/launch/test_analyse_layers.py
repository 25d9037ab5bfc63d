"""`trimline analyse similarity` and `attention`: from run folders, with figure and numbers; what they refuse."""

import csv
import json
from pathlib import Path

import pytest

from launch.cli import main

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two runs of other seeds."""
    place = tmp_path_factory.mktemp("runs")
    folders = tuple(str(place / str(seed)) for seed in (0, 1))
    for seed, folder in enumerate(folders):
        assert main(["pretrain", TINY, "--out", folder, "--seed", str(seed)]) == 0
    return folders[0], folders[1]


@pytest.mark.parametrize("what", ["similarity", "attention"])
def test_the_numbers_stand_in_json_table_and_figure(
    what: str, runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["analyse", what, runs[0], "--samples", "8", "--out", str(tmp_path)]
    words += ["--against", runs[1]] if what == "attention" else []
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["layer"] for row in rows if row["part"] == "vision"} == {0, 1, 2, 3}
    assert all(row["samples"] == 8 for row in rows)
    with open(tmp_path / f"{what}.csv") as file:
        saved = [float(row["value"]) for row in csv.DictReader(file)]
    assert saved == [row["value"] for row in rows]
    assert (tmp_path / f"{what}.svg").read_text().startswith("<svg")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "split test, 8 pairs"
    assert f"{rows[0]['value']:.3f} (" in "\n".join(lines)


def test_wrong_words_are_told_in_a_line(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, wanted in (
        (["similarity", "/nowhere"], "is no run folder"),
        (["similarity", runs[0], "--split", "nowhere"], "has no split 'nowhere'"),
        (["similarity", runs[0], "--samples", "0"], "must be at least 1"),
        (["attention", runs[0], "--against", "/nowhere"], "is no run folder"),
    ):
        capsys.readouterr()
        assert main(["analyse", *words]) == 2
        said = capsys.readouterr().err
        assert wanted in said and len(said.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["analyse", "attention", runs[0]])
