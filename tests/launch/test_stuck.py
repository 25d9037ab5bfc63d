"""A rank that stops under Ray, where nobody looks for signs of life: the others find that no step ends."""

import json
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from launch.backend import RESTARTS
from pipeline.pulse import born, is_running, read_pulses
from tests.launch.faulty.faults import wait_until
from tests.launch.test_run import losses, process

STEPS, EVERY = 160, 10
_STALL_SECONDS = 10.0
_ENDING_SECONDS = 20.0  # until a process that ended itself is missed, and all others are ended, on a loaded machine
_PATIENCE = 300.0


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stall_seconds_end_a_stage_whose_steps_do_not_go_on_and_it_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stage = out / "stages" / "pretrain"
    run = process(
        out, "--launcher=ray", "--cluster.workers=2", "--cluster.cpus_per_worker=0.5", "--engine.name=deepspeed",
        "--cluster.silent_seconds=0", f"--cluster.stall_seconds={_STALL_SECONDS:g}",
        f"--pretrain.loop.samples={8 * STEPS}", "--pretrain.loop.checkpoint_seconds=10000",
        f"--checkpoint.keep_every_steps={EVERY}", "--trim.targets=[]",
        "--evaluate.statement_splits=[]", "--evaluate.retrieval_splits=[]", "--evaluate.pictures=0",
        command="pretrain",
    )  # fmt: skip
    try:
        metrics = stage / "metrics.jsonl"
        wait_until(lambda: run.poll() is not None or lines(metrics) >= 35, _PATIENCE, "step 35")
        assert run.poll() is None, run.communicate()
        pid = int(str(read_pulses(stage)[1]["pid"]))
        start, struck = born(pid), time.time()
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: (stage / RESTARTS).exists(), 60, "a restart")
        _, errors = run.communicate(timeout=_PATIENCE)
        assert run.returncode == 0, errors
    finally:
        run.kill()
    (told,) = map(json.loads, (stage / RESTARTS).read_text().splitlines())
    noticed = datetime.fromisoformat(told["detected"]).timestamp()
    assert noticed - struck <= _STALL_SECONDS + _ENDING_SECONDS
    assert told["why"].startswith("worker 0 stuck (no step for 10 s after step ")
    stopped_at = int(told["why"].rpartition(" ")[2].rstrip(")"))
    assert stopped_at >= 35 and stopped_at - 2 * EVERY <= told["step"] <= stopped_at
    assert f"going on from step {told['step']} with 2 workers, restart 1 of 3" in errors
    assert "its threads are at" in (stage / "log.txt").read_text()
    assert not is_running(pid, start)
    assert [line["step"] for line in losses(out, "pretrain")] == list(range(1, STEPS + 1))
