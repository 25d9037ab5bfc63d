"""Whole runs with targets of every kind: a ratio, multiply-accumulates, milliseconds on this machine."""

import json
import re
from pathlib import Path

import pytest

from data_prep.files import read_json
from pipeline.trimming.target import Target
from tests.launch.test_run import run

LARGER = [
    "--data.image_size", "96", "--loader.height", "96", "--loader.width", "96", "--model.vision.height", "96",
    "--model.vision.width_px", "96", "--model.vision.width", "192", "--model.vision.depth", "6",
    "--pretrain.loop.samples", "16", "--pretrain.pruning.method", "none", "--trim.loop.samples", "64",
]  # fmt: skip
KINDS = "[1.0, 1.5x, 0.0005 GFLOPs, 0.001 ms]"
# In a few steps trimmers learn nothing; their scores shall differ all the same, or all units go at once.
SPREAD = ["--trim.smarttrim.trimmers.last_std", "0.5", "--trim.smarttrim.calibrate", "64"]
BRIEF = ["--pretrain.loop.samples", "16", "--trim.latency.instances", "2", "--trim.latency.seconds", "0.1"]
LATENCY = ["--trim.latency.seconds", "2", "--evaluate.latency.seconds", "2", *SPREAD]


@pytest.mark.timeout(400)
def test_kinds_of_targets_stand_in_one_list_and_what_is_reached_beside_what_was_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(out, "--trim.targets", KINDS, *SPREAD, *BRIEF, "--json") == 2
    failures = json.loads(capsys.readouterr().out)["failures"]
    assert list(failures) == ["trim-statement-0.001ms"]
    assert re.search(r"cannot be reached: .*; the highest target is [\d.]+ ms, which is", *failures.values())
    rows = [row for row in read_json(out / "results.json") if row["metric"] == "accuracy"]
    assert [(row["target"], row["wanted"], row["unit"]) for row in rows] == [
        (1.0, 1.0, "x"), (1.5, 1.5, "x"), ("0.0005 GMACs", 0.0005, "GMACs"),
    ]  # fmt: skip
    assert rows[0]["reached"] == pytest.approx(1.0) and rows[2]["reached"] == rows[2]["gmacs"]
    assert rows[1]["reached"] == pytest.approx(rows[0]["gmacs"] / rows[1]["gmacs"])
    for name, row in zip(("1.5x", "0.0005GMACs"), rows[1:], strict=True):
        calibration = read_json(out / f"stages/trim-statement-{name}/result.json")["calibration"]
        assert calibration["reached"] == pytest.approx(row["wanted"], rel=0.03)
        assert "the text's own CLS is used in its place" in (out / f"stages/trim-statement-{name}/log.txt").read_text()
    assert "Reached" in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(800)
@pytest.mark.parametrize("method", ["smarttrim", "grad_all"])
def test_a_time_on_this_machine_is_reached_or_its_distance_is_told(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = [*LARGER, *LATENCY, "--trim.method", method, "--trim.heads.instances", "32"]
    assert run(out, *more, "--trim.targets", "[1.0, 0.001 ms]", "--json", command="trim") == 2
    (said,) = json.loads(capsys.readouterr().out)["failures"].values()
    least, full = (float(figure) for figure in re.findall(r"takes ([\d.]+) of its ([\d.]+) ms", said)[0])
    wanted = round((least + full) / 2, 1)
    assert run(out, *more, "--trim.targets", f"[1.0, {wanted} ms]", "--json") == 0
    rows = [row for row in read_json(out / "results.json") if row["metric"] == "accuracy" and row["unit"] == "ms"]
    (stage,) = (out / "stages").glob(f"trim-*-{Target(wanted, 'ms').name}")
    settled = read_json(stage / "result.json")["calibration"]
    assert settled["reached"] == pytest.approx(wanted, rel=0.05)
    assert settled["latency"]["low"] <= settled["reached"] <= settled["latency"]["high"]
    assert [row["method"] for row in rows] == [method]
    planned = read_json(stage / "target.json")["plan"]["full_ms"]
    for row in rows:
        assert row["reached_low"] <= row["reached"] <= row["reached_high"]
        # The machine may be busier now, for both models.
        assert row["reached"] / row["full_ms"] == pytest.approx(wanted / planned, rel=0.15)
