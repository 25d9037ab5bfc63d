"""`trimline analyse leak`: from run folders, of one run and of several, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.leak_table import leak_text, means_of

TINY = str(Path(__file__).parent / "tiny.yaml")


def row(run: str, setting: str, by: str, value: float, **apart: float) -> dict[str, Any]:
    found = {"run": run, "setting": setting, "seed": 0, "held_out": True, "task": "matching", "samples": 4}
    found |= {"metric": "negatives told", "pruned_by": by, "value": value, "difference": 0.0}
    for name, center in apart.items():
        found |= {name: center, f"{name}_low": center - 1, f"{name}_high": center + 1}
    return found


def test_runs_of_one_setting_are_averaged_with_their_spread() -> None:
    rows = [row(f"r{n}", "albef query", "own caption", 70.0 + n, difference=-1.0 + n, leak=2.0) for n in (0, 1, 2)]
    rows += [row("s", "albef stage", "own caption", 50.0, difference=0.5, leak=1.0)]
    query, stage = means_of(rows)
    assert (query["runs"], query["value"], query["spread"]) == (3, 71.0, 1.0)
    assert (query["difference"], query["difference_half_width"]) == (0.0, pytest.approx(4.303 / 3**0.5))
    assert (query["leak"], query["leak_half_width"]) == (2.0, 0.0)
    assert (stage["setting"], stage["runs"], stage["spread"], stage["leak_half_width"]) == (
        "albef stage",
        1,
        None,
        None,
    )
    lines = leak_text("test", rows, [query, stage]).splitlines()
    assert "71.0% ± 1.0" in lines[3] and "+0.0 (-2.5 to +2.5)" in lines[3] and "+2.0 (+2.0 to +2.0)" in lines[3]
    assert lines[4].split() == ["albef", "stage", "matching", "own", "caption", "negatives", "told", "50.0%", "+0.5",
                                "+1.0", "1"]  # fmt: skip


def test_what_is_known_of_the_split_stands_above_the_table() -> None:
    rows = [row("r0", "albef query", "unpruned", 70.0)]
    lines = leak_text("train", rows, means_of(rows), ["not held out: r0", "held out: r1"]).splitlines()
    assert lines[1:3] == ["not held out: r0", "held out: r1"]


def test_the_leak_is_measured_from_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three runs of two guidances: by default on the evaluated split, on another one, and on shards from elsewhere."""
    first, second, stage = (str(tmp_path / name) for name in ("first", "second", "stage"))
    for out, more in ((first, []), (second, ["--seed=1"]), (stage, ["--pretrain.pruning.elip.guidance=stage"])):
        assert main(["pretrain", TINY, "--out", out, *more]) == 0
    capsys.readouterr()
    assert main(["analyse", "leak", first, second, stage, "--samples", "16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["split"] == "test" and {row["task"] for row in told["rows"]} >= {"matching", "masked words"}
    assert {(row["run"], row["setting"], row["seed"]) for row in told["rows"]} == {
        (first, "albef query", 0), (second, "albef query", 1), (stage, "albef stage", 0),
    }  # fmt: skip
    assert all(row["held_out"] and row["samples"] <= 16 * 24 for row in told["rows"])
    by_setting = {(row["setting"], row["runs"]) for row in told["means"]}
    assert by_setting == {("albef query", 2), ("albef stage", 1)}
    for mean in told["means"]:
        same = [
            row["value"]
            for row in told["rows"]
            if all(row[k] == mean[k] for k in ("setting", "task", "metric", "pruned_by"))
        ]
        assert mean["value"] == pytest.approx(sum(same) / len(same))

    assert main(["analyse", "leak", stage, "--split", str(Path(first) / "data" / "train"), "--samples", "8"]) == 0
    said = capsys.readouterr().out  # of the same recipe, so that the same bytes lie in its own folder
    assert f"split {Path(first).resolve()}/data/train" in said and f"not held out: {stage} was trained on" in said
    assert main(["analyse", "leak", stage, "--split", "train", "--samples", "8"]) == 0
    assert f"not held out: {stage} was trained on this split" in capsys.readouterr().out


def test_what_cannot_be_looked_at_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready, pruned_by_itself = str(tmp_path / "ready"), str(tmp_path / "evit")
    assert main(["pretrain", TINY, "--out", ready]) == 0
    evit = ["--pretrain.pruning.method=evit", "--pretrain.pruning.evit.layers=[1, 2]"]
    assert main(["pretrain", TINY, "--out", pruned_by_itself, *evit]) == 0
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((Path(ready) / "config.yaml").read_text())
    capsys.readouterr()
    for words, said in [
        ([ready, "--split", "nowhere"], "has no split 'nowhere', nor is that a folder of indexed shards; it has test"),
        ([str(tmp_path)], "is no run folder"),
        ([str(tmp_path / "begun")], "has no pre-trained model yet"),
        ([pruned_by_itself], "without text-guided pruning"),
        ([ready, ready], "named twice"),
        ([ready, "--samples", "1"], "--samples 1 must be at least 2"),
    ]:  # fmt: skip
        assert main(["analyse", "leak", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 1
