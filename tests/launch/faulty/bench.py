"""Runs of a tiny pre-training on two Ray machines, each with a fault at a random step, held against one without.

    python -m tests.launch.faulty.bench --runs 20 --seed 0 --out /tmp/faults

Written for each: how long it took until the fault was noticed, until training went on, and how many steps were lost.
The exit code is 1 where a run failed or took more than `judge.over` allows, or had other samples than the undisturbed.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.backend import RESTARTS
from launch.graph import read_status
from pipeline.progress import read_metrics
from pipeline.pulse import read_pulses
from tests.launch.faulty.faults import EVERY, FAULTS, STEPS, Fault, Training, wait_until
from tests.launch.faulty.judge import checkpoints, complaints, gone_on_from, samples_of_steps
from tests.launch.faulty.nodes import ROOT, Nodes, two_nodes

_CLOCKS = ("second", "time", "wait", "_ms", "tflops", "memory", "restarts")
_PATIENCE = 240.0
_BEGUN_SECONDS = 10.0
_OPTIONS = [
    "--launcher=ray", "--cluster.workers=2", "--engine.name=deepspeed", "--pretrain.loop.global_batch=8",
    "--pretrain.loop.checkpoint_seconds=10000",
    f"--checkpoint.keep_every_steps={EVERY}",
]  # fmt: skip


class Run:
    """A `trimline pretrain` on the cluster.

    Args:
        nodes: The cluster.
        out: Its run folder.
        words: Further options.
        steps: Of the training.
    """

    def __init__(self, nodes: Nodes, out: Path, words: tuple[str, ...] = (), steps: int = STEPS) -> None:
        config = str(ROOT / "tests/launch/tiny.yaml")
        words = tuple(word.format(disk=nodes.disk, name=out.name) for word in words)
        options = [
            *_OPTIONS,
            f"--pretrain.loop.samples={8 * steps}",
            f"--cluster.address={nodes.address}",
            f"--out={out}",
            *words,
        ]
        self._command = [sys.executable, "-m", "launch", "pretrain", config, *options]
        self.checkpoints = self._checkpoints(words, out)
        self._errors = out.with_suffix(".txt")
        self.stage = out / "stages" / "pretrain"
        self.out = out
        self.began = time.time()
        self.process = self._start()

    def again(self) -> None:
        """The same command once more."""
        self.process = self._start()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(_PATIENCE)

    def step(self) -> int:
        """Steps done."""
        lines = read_metrics(self.stage / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def state(self) -> dict[str, int | None]:
        """Steps done, and the checkpoints for them: the newest complete one, and a newer one that is being written.

        Raises:
            AssertionError: A checkpoint that is due was not begun.
        """
        end = time.monotonic() + _BEGUN_SECONDS
        while True:
            step = self.step()
            complete, saving = checkpoints(self.checkpoints)
            if step - (saving or complete) <= EVERY:
                return {"step": step, "complete": complete, "saving": saving}
            assert time.monotonic() < end, f"no checkpoint was begun from step {saving or complete} to {step}"
            time.sleep(0.02)

    def goes_on(self, before: dict[int, int]) -> bool:
        """Whether other processes than those before have done a step; signs of life come once a second."""
        pulses = read_pulses(self.stage)
        new = all(pulse["pid"] not in before.values() for pulse in pulses.values())
        return bool(pulses) and new and all(pulse["step"] is not None for pulse in pulses.values())

    def pids(self) -> dict[int, int]:
        """Of the workers, by rank."""
        return {rank: int(pulse["pid"]) for rank, pulse in read_pulses(self.stage).items()}  # type: ignore[call-overload]

    def said(self) -> str:
        """What was on the screen."""
        return self._errors.read_text()

    def losses(self) -> list[dict[str, Any]]:
        """The committed trajectory without what depends on the clock."""
        lines = read_metrics(self.stage / "metrics.jsonl")
        return [{k: v for k, v in line.items() if not any(part in k for part in _CLOCKS)} for line in lines]

    def weights(self) -> str:
        """A digest of what came of it."""
        return hashlib.sha256((self.stage / "export" / "model.safetensors").read_bytes()).hexdigest()

    @staticmethod
    def _checkpoints(words: tuple[str, ...], out: Path) -> Path:
        given = [word.partition("=")[2] for word in words if word.startswith("--checkpoint.path=")]
        return Path(given[0]) / "pretrain" if given else out / "stages" / "pretrain" / "checkpoints"

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._errors, "ab") as errors:
            return subprocess.Popen(self._command, cwd=ROOT, stdout=errors, stderr=errors, env=os.environ)


def undisturbed(nodes: Nodes, out: Path) -> Run:
    """A run without a fault."""
    run = Run(nodes, out)
    assert run.wait() == 0, run.said()
    assert [line["step"] for line in run.losses()] == list(range(1, STEPS + 1))
    assert sorted(samples_of_steps(out)) == list(range(1, STEPS + 1))
    return run


def disturbed(nodes: Nodes, out: Path, kind: str, seed: int, reference: Run) -> dict[str, Any]:
    """A run with a fault; what it took.

    Raises:
        AssertionError: It did not come to the undisturbed run's end, or not as it should.
    """
    fault, draw = FAULTS[kind], random.Random(seed)
    nodes.add()
    run = Run(nodes, out, fault.words, fault.steps)
    try:
        return _strike(nodes, run, fault, draw, reference) | {"seconds": round(time.time() - run.began, 1)}
    finally:
        run.process.kill()


def _strike(nodes: Nodes, run: Run, fault: Fault, draw: random.Random, reference: Run) -> dict[str, Any]:
    step, rank = draw.randrange(EVERY + 1, STEPS - 60), draw.randrange(2)
    wait_until(lambda: run.step() >= step or run.process.poll() is not None, _PATIENCE, f"step {step}")
    assert run.process.poll() is None, run.said()
    pids = run.pids()
    state, struck = run.state(), time.time()
    fault.inject(Training(nodes, run.stage, run.process.pid, pids, rank))
    row = {"rank": rank} | state | _follow(run, fault, nodes, pids, rank, struck)
    assert run.wait() == 0, run.said()
    _check(run, fault, reference, row)
    return row


def _follow(
    run: Run, fault: Fault, nodes: Nodes, pids: dict[int, int], rank: int, struck: float
) -> dict[str, float | int | None]:
    """Waits until the fault is noticed and training goes on."""
    if fault.exit_code:
        assert run.wait() == fault.exit_code, run.said()
    else:
        time.sleep(1)  # whatever stops training has stopped it
    noticed, reached = time.time(), run.step()
    time.sleep(fault.mend_seconds)
    fault.mend(Training(nodes, run.stage, run.process.pid, pids, rank))
    if fault.exit_code:
        run.again()
    elif fault.restarts:
        wait_until(lambda: (run.stage / RESTARTS).exists(), _PATIENCE, "a restart")
        told = json.loads((run.stage / RESTARTS).read_text().splitlines()[0])
        noticed = datetime.fromisoformat(told["detected"]).timestamp()
    else:
        return {"detected_seconds": None, "training_again_seconds": None, "resumed_from": None, "steps_lost": None}
    wait_until(lambda: run.goes_on(pids), _PATIENCE, "training")
    again, resumed = time.time(), gone_on_from(run.out, pids.values())
    return {
        "detected_seconds": round(noticed - struck, 1),
        "training_again_seconds": round(again - noticed, 1),
        "resumed_from": resumed,
        "steps_lost": reached - resumed,
    }


def _check(run: Run, fault: Fault, reference: Run, row: dict[str, Any]) -> None:
    """The committed trajectory is the undisturbed one, and no more was said than may be; times are for `judge.over`.

    With another number of workers losses differ, but each step has the samples that it has in the undisturbed run,
    whoever did it and however often; steps beyond that run's end (`grow`) were the same each time that they were done.
    """
    assert [line["step"] for line in run.losses()] == list(range(1, fault.steps + 1))
    given, usual = samples_of_steps(run.out), samples_of_steps(reference.out)
    assert sorted(given) == list(range(1, fault.steps + 1))
    assert {step: given[step] for step in usual} == usual
    made, wanted = (read_status(each.stage)["outputs"] for each in (run, reference))
    assert (made["steps"], made["samples"], made["skipped"]) == (fault.steps, 8 * fault.steps, wanted["skipped"])
    assert fault.says in run.said(), run.said()
    if fault.same_size:
        assert run.losses() == reference.losses()
        assert run.weights() == reference.weights()
    row["losses_equal"] = run.losses() == reference.losses()
    restarts = run.stage / RESTARTS
    lines = restarts.read_text().splitlines() if restarts.exists() else []
    assert len(lines) == fault.restarts, run.said()
    assert "Traceback" not in run.said()
    row["said"] = [line for line in run.said().splitlines() if "restart" in line or line.startswith("trimline:")]


def _possible(kinds: list[str], nodes: Nodes) -> list[str]:
    """Those of the kinds that can be tried here; the others are told."""
    left_out = [kind for kind in kinds if FAULTS[kind].fills_disk and not nodes.has_disk]
    if left_out:
        print(f"left out, as no small disk can be mounted to be filled: {', '.join(left_out)}", flush=True)
    return [kind for kind in kinds if kind not in left_out]


def _try_all(kinds: list[str], runs: int, first_seed: int, out: Path, nodes: Nodes) -> list[dict[str, Any]]:
    """Each kind in turn, so that few runs have them all; when and whom it hits is the seed's. A row for each run."""
    reference = undisturbed(nodes, out / "undisturbed")
    print(f"undisturbed: {time.time() - reference.began:.1f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for number in range(runs):
        kind, seed = kinds[number % len(kinds)], first_seed + number
        try:
            row = disturbed(nodes, out / f"{kind}-{seed}", kind, seed, reference)
        except (AssertionError, TimeoutError, subprocess.TimeoutExpired):
            row = {"failed": traceback.format_exc()[-2000:]}  # of a bare assertion only the line tells
        rows.append({"fault": kind, "seed": seed} | row)
        print(json.dumps(rows[-1]), flush=True)
        with open(out / "faults.jsonl", "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with two_nodes(options.out) as nodes:
        kinds = _possible(options.faults, nodes)
        rows = _try_all(kinds, options.runs, options.seed, options.out, nodes) if kinds else []
    wrong = complaints(rows)
    print(*wrong, f"{len(rows)} runs with a fault, {len(wrong)} of them failed or over a limit", sep="\n", flush=True)
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
