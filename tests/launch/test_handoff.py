"""From pre-training to the trim stages in whole runs: what does not fit is refused, what fails fails alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.files import read_json
from launch.cli import main
from launch.graph import read_status
from tests.launch.test_run import ROOT, TINY, run

FEW = ("--pretrain.loop.samples", "16", "--trim.loop.samples", "16", "--trim.targets", "[1.0]")
BLIP = ("--model.backbone", "blip", "--model.text.fusion_layers", "0", "--model.text.text_layers", "2")


def test_a_checkpoint_of_another_backbone_is_refused_by_the_stages_that_need_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    assert run(mine, *FEW, command="pretrain") == 0
    assert run(other, *FEW, *BLIP, "--pretrain.pruning.method", "none", command="pretrain") == 0
    shutil.rmtree(mine / "stages/pretrain/export")
    shutil.copytree(other / "stages/pretrain/export", mine / "stages/pretrain/export")
    capsys.readouterr()
    assert run(mine, *FEW, "--json", command="trim") == 2
    printed = json.loads(capsys.readouterr().out)
    begun, waiting = {"shard": "skipped", "pretrain": "skipped"}, {"evaluate-trim-statement-1.0x": "blocked"}
    assert printed["stages"] == {**begun, "trim-statement-1.0x": "failed", **waiting}
    assert "its backbone is blip, this run's is albef" in printed["failures"]["trim-statement-1.0x"]
    assert main(["status", str(mine)]) == 0
    assert "failed: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trim_stages_side_by_side_fail_alone_and_the_finished_ones_are_skipped(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--launcher", "ray", "--cluster.workers", "1", "--cluster.cpus_per_worker", "0.5"]
    words += [*FEW[:4], "--trim.targets", "[1.0, 8.5, 1.5]"]
    command = [sys.executable, "-m", "launch", "trim", TINY, "--out", str(out), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    assert "failed: trim-statement-8.5x: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    states = {name: read_status(out / "stages" / f"trim-statement-{name}x") for name in ("1.0", "8.5", "1.5")}
    assert {name: state["state"] for name, state in states.items()} == {"1.0": "done", "8.5": "failed", "1.5": "done"}
    begun = [state["started"] for state in states.values()]
    command[-1] = "[1.0, 1.5]"
    again = subprocess.run(
        [*command, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert again.returncode == 0, again.stderr
    assert set(json.loads(again.stdout)["stages"].values()) == {"skipped"}
    assert [read_status(out / "stages" / f"trim-statement-{name}x")["started"] for name in states] == begun
    assert read_json(out / "run.json")["finished"]
