"""Mistakes in `trim`: one line, exit code 2, nothing begun."""

from pathlib import Path

import pytest

from data_prep.shapes_published import write_published
from launch.cli import main

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trim.method", "nothing"], "nothing"),
        (["--trim.method", "ftkd", "--trim.targets", "[2.0]"], "must hold 1.0"),
        (["--trim.method", "ftkd", "--trim.targets", "[0.001 GFLOPs]"], "must hold 1.0"),
        (["--trim.evit.layer", "[1]"], "layer"),
        (["--trim.evit.layers", "[99]", "--trim.method", "evit"], "numbered from 0"),
        (["--trim.method", "evit", "--trim.targets", "[1.0, 5 ms]"], "a target of 5 ms is settled by trimmers' scores"),
        (["--trim.method", "ftkd", "--trim.targets", "[1.0, 5 ms]"], "trim.method=ftkd has none"),
        (["--trim.method", "evit", "--trim.targets", "[500x]"], "with all trimmed that this method trims"),
        (["--trim.method", "ftkd", "--trim.targets", "[1.0, 500x]"], "with one layer left in each part"),
        (["--trim.method", "grad_all", "--trim.targets", "[1.0, 1e-9 GFLOPs]"], "; the highest target is"),
        (
            ["--trim.method", "head_random", "--trim.heads.tokens", "all", "--trim.targets", "[3x]"],
            "highest target is 1.",
        ),
        (["--take_from", "/nowhere"], "holds no run"),
        (["--trim.method", "local", "--trim.smarttrim.groups", "[vision]"], "is of trim.method=smarttrim alone"),
        (["--trim.smarttrim.groups", "[pictures]"], "groups"),
        (
            ["--trim.max_tokens", "40"],
            "trim.max_tokens=40 is more than the 24 tokens that the model's",
        ),
        (["--trim.max_tokens", "2"], "trim.max_tokens=2 must be at least 3"),
        (["--trim.method", "evit", "--trim.evit.layers", "[2, 1]"], "layers=[2, 1] must name different"),
        (
            ["--trim.method", "trips", "--trim.trips.layers", "[1, 1]"],
            "layers=[1, 1] must name different",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", TINY, "--out", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1, told
    assert not (tmp_path / "run/data").exists()


def test_data_without_what_the_task_reads_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what is not in shards yet it is known once it is; mended, the same command goes on."""
    write_published("coco", tmp_path / "raw", {"train": 16, "val": 4}, 32, 0)
    words = ["run", TINY, "--out", str(tmp_path / "run"), "--data.name=coco", f"--data.root={tmp_path / 'raw'}"]
    words += ["--data.sizes={}", "--evaluate.retrieval_splits=[val]", "--evaluate.statement_splits=[val]"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "trim.splits names the split 'train', which has 16 samples but no statements, which trim.task=stat" in told
    assert "Traceback" not in told and not (tmp_path / "run/stages/pretrain").exists()
    assert main(["pretrain", *words[1:]]) == 0, "what no stage of the command reads is not asked for"
