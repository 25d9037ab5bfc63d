"""The main job, whole, struck at random moments; it ends as an undisturbed one does."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
STRIKES = 6


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "launch", "run", str(ROOT / "configs/runs/demo.yaml"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--seed", "1", "--data.seed", "1"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )


def strike(running: subprocess.Popen[bytes], draw: random.Random) -> str:
    """Kills the run alone, everything of it, or one process below it, which the run survives or not; says which."""
    root = psutil.Process(running.pid)
    below = root.children(recursive=True)
    kind = draw.choice(["run", "everything", "worker", "one"])
    workers = [one for one in below if "ray::" in one.name()] or below
    struck = {
        "run": [root], "everything": [root, *below], "worker": [draw.choice(workers)], "one": [draw.choice(below)]
    }[kind]  # fmt: skip
    names = ", ".join(sorted({one.name() for one in struck}))
    for one in struck:
        one.kill()
    if root in struck:
        running.wait()
        for left in psutil.wait_procs(below, 60)[1]:  # Ray's processes notice by themselves
            left.kill()
    return f"{kind}: {names}"


def struck(out: Path, draw: random.Random) -> list[str]:
    """What was struck of a run that is started again whenever it has ended before it is finished."""
    strikes: list[str] = []
    running = start(out)
    while len(strikes) < STRIKES:
        try:
            if running.wait(draw.uniform(15, 60)) == 0:
                break
        except subprocess.TimeoutExpired:
            strikes.append(strike(running, draw))
            print(strikes[-1], flush=True)
        if running.poll() is not None:
            running = start(out)
    running.wait()
    return strikes


def losses(out: Path) -> list[dict[str, Any]]:
    """The metrics of all stages without what depends on the clock or on how often a run was struck."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clocks = ("second", "time", "wait", "_ms", "tflops", "memory", "restarts")
    return [{key: value for key, value in line.items() if not any(part in key for part in clocks)} for line in lines]


def undisturbed(tmp_path: Path) -> Path:
    """A finished demo of seed 1: a folder that ``TRIMLINE_DEMO_RUN`` names, or one made now."""
    if "TRIMLINE_DEMO_RUN" in os.environ:
        return Path(os.environ["TRIMLINE_DEMO_RUN"])
    assert start(tmp_path / "undisturbed").wait() == 0
    return tmp_path / "undisturbed"


def test_the_demo_struck_at_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    reference, out, draw = undisturbed(tmp_path), tmp_path / "struck", random.Random(0)
    assert len(struck(out, draw)) == STRIKES
    assert start(out).wait() == 0
    assert losses(out) == losses(reference)
    assert read_json(out / "results.json") == read_json(reference / "results.json")
