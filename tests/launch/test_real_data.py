"""The recipes for real data, from the raw files to the report, two minutes of training each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("TRIMLINE_DATA", REPO.parent / "shared" / "data"))


def run(recipe: str, out: Path, *more: str) -> dict[str, Any]:
    if not DATA.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"the data sets are not there: {DATA} (set TRIMLINE_DATA)")
    command = [
        sys.executable, "-m", "launch", "run", str(REPO / "configs" / "runs" / recipe), "--data.root", str(DATA),
        "--out", str(out), "--budget.minutes", "2", "--json", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    assert not result["failures"]
    return result


def check_report(out: Path) -> None:
    assert (out / "report.html").stat().st_size > 10_000
    stages = {json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()}
    assert "pretrain" in stages


@pytest.mark.timeout(600)
def test_nlvr_from_raw_files_to_the_report_in_two_minutes_of_training(tmp_path: Path) -> None:
    out = tmp_path / "nlvr"
    rows = run("nlvr.yaml", out, "--data.sizes.drawn", "2000")["results"]  # drawing all 30,000 takes a minute
    of = {(row["target"], row["split"], row["metric"]): row for row in rows}
    for target in (1.0, 2.0):
        assert {(target, split, "accuracy") for split in ("val", "dev")} <= set(of)
        assert (target, "dev", "consistency") in of
        assert of[target, "dev", "accuracy"]["low"] <= of[target, "dev", "accuracy"]["value"]
    assert of[2.0, "dev", "accuracy"]["gmacs"] < of[1.0, "dev", "accuracy"]["gmacs"]
    check_report(out)


@pytest.mark.timeout(600)
def test_flickr8k_from_raw_files_to_the_report_in_two_minutes_of_training(tmp_path: Path) -> None:
    out = tmp_path / "flickr8k"
    rows = run("flickr8k.yaml", out)["results"]
    assert {row["split"] for row in rows} == {"val", "test"}
    assert {row["task"] for row in rows} == {"retrieval"}
    check_report(out)
