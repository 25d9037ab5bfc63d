import json
import random
from pathlib import Path
from typing import Any

import pytest

from launch.report import write_report
from tests.launch.report.compared import build_comparison
from tests.launch.report.folders import draw_picture, instances, outcomes, save

COMMAND = "trimline run configs/runs/demo.yaml --seed 7"
STEPS = 300


def row(
    stage: str,
    method: str,
    target: float | None,
    task: str,
    split: str,
    metric: str,
    value: float,
    gmacs: float | None,
    seed: int = 7,
) -> dict[str, Any]:
    return {
        "stage": stage,
        "method": method,
        "target": target,
        "task": task,
        "split": split,
        "metric": metric,
        "value": value,
        "low": round(value - 2.1, 4),
        "high": round(value + 1.9, 4),
        "gmacs": gmacs,
        "seed": seed,
    }


def metric_lines(parts: list[str], steps: int = STEPS) -> str:
    dice = random.Random(1)
    lines = []
    for step in range(1, steps + 1):
        losses = {f"loss/{part}": (2 + at) * 0.99**step + 0.2 * dice.random() for at, part in enumerate(parts)}
        lines.append(
            {
                "step": step,
                "samples": 64 * step,
                "seconds": 0.5 * step,
                "lr": 1e-3 * (1 - step / steps),
                "loss": sum(losses.values()),
                **losses,
                "grad_norm": 1 + dice.random(),
            }
        )
    return "\n".join(map(json.dumps, lines)) + "\n"


def stage(run: Path, name: str, at: int, seconds: float | None, **status: Any) -> None:
    state = {
        "state": "done",
        "fingerprint": "0f" * 32,
        "started": f"2026-01-05T10:{at:02d}:00+00:00",
        "seconds": seconds,
        "restarts": 0,
        "outputs": {},
        **status,
    }
    save(run / "stages" / name / "status.json", state)


def results() -> list[dict[str, Any]]:
    rows = [
        row("evaluate", "pretrain", None, "retrieval", "test", f"{way} R@{k}", base + 1.2 * k, 0.0123)
        for way, base in (("TR", 41.0), ("IR", 38.0))
        for k in (1, 5, 10)
    ]
    points = {1.0: (81.25, 0.0124), 1.5: (82.03, 0.0085), 2.0: (80.10, 0.0061), 3.0: (74.12, 0.0066)}
    for split, change in (("test", 0.0), ("unseen", -6.0)):
        for target, (value, gmacs) in points.items():
            name = f"trim-statement-{target:.1f}x"
            rows.append(row(name, "smarttrim", target, "statement", split, "accuracy", value + change, gmacs))
            rows.append(row(name, "smarttrim", target, "statement", split, "consistency", value / 2, gmacs))
    return rows


def sentence(text: str, label: bool, model: str, kept_last: set[int], layers: int = 6) -> dict[str, Any]:
    """A sentence whose patches go one by one, from the far end, until `kept_last` are left."""
    going = [patch for patch in range(63, -1, -1) if patch not in kept_last]
    tokens = ["[CLS]", *text.split(), "[SEP]"]
    steps, text_steps = [], []
    for layer in range(1, layers + 1):
        gone = set(going[: len(going) * layer // layers])
        steps.append(
            {
                "name": f"vision layer {layer}",
                "grid": [8, 8],
                "kept": [p for p in range(64) if p not in gone],
                "merged": 2 if model == "pretrain" else 0,
            }
        )
    for layer in range(1, 4):
        text_steps.append({"name": f"fusion layer {layer}", "kept": list(range(max(2, len(tokens) - layer)))})
    return {
        "text": text,
        "label": label,
        "model": model,
        "steps": steps,
        "tokens": tokens,
        "text_steps": text_steps if model != "pretrain" else [],
        "gmacs": 0.0061,
    }


def survivors(run: Path) -> list[dict[str, Any]]:
    red, blue = {9, 10, 11, 17, 18, 19, 25, 26, 27}, {36, 37, 38, 44, 45, 46, 52, 53, 54}
    pictures = []
    for name in ("00012.png", "00031.png"):
        draw_picture(run / "stages" / "survivors" / name)
        sentences = [
            sentence(text, label, model, kept)
            for model in ("pretrain", "2.0x")
            for text, label, kept in (
                ("there is a red circle at the top", True, red),
                ("the square is yellow", False, blue),
            )
        ]
        pictures.append({"image": name, "width": 96, "height": 96, "sentences": sentences})
    return pictures


CONFIG = "name: demo\nseed: 7\ntrim:\n  task: statement\n  targets: [1.0, 1.5, 2.0, 3.0]\n"


def build_finished_run(run: Path) -> Path:
    save(
        run / "run.json",
        {
            "name": "demo",
            "command": COMMAND,
            "started": "2026-01-05T10:00:00+00:00",
            "finished": "2026-01-05T10:08:12+00:00",
            "seconds": 492.0,
            "seed": 7,
            "commit": "2f1c0de" + 33 * "0" + "+changes",
            "versions": {"python": "3.11.2", "torch": "2.15.0"},
            "hardware": {
                "system": "Linux x86_64",
                "processor": "Example CPU @ 2.5 GHz",
                "cpus": 2,
                "memory_gib": 7.8,
                "gpus": 0,
            },
        },
    )
    save(run / "config.yaml", CONFIG)
    for split, asked in (("train", 12000), ("val", 512), ("test", 512), ("unseen", 256)):
        bad = {"image cannot be decoded": 3, "caption is empty": 1} if split == "train" else {}
        account = {"asked": asked, "written": asked - sum(bad.values()), "skipped": bad}
        save(run / "data" / split / "index.json", {"shardlist": [{"url": "00000.tar"}], "account": account})
    stage(run, "pretrain", 1, 200.0, restarts=1, outputs={"skipped": {"image is truncated": 2}})
    save(run / "stages" / "pretrain" / "metrics.jsonl", metric_lines(["itc", "itm", "mlm"]))
    for target in ("1.0x", "2.0x"):
        stage(run, f"trim-statement-{target}", 5, 120.0)
        save(run / "stages" / f"trim-statement-{target}" / "metrics.jsonl", metric_lines(["task", "cost"], 80))
    stage(run, "evaluate", 7, 31.0)
    stage(run, "survivors", 8, 4.2)
    save(run / "stages" / "survivors" / "survivors.json", survivors(run))
    for target in (1.0, 1.5, 2.0, 3.0):
        name, whole = f"trim-statement-{target:.1f}x", float(target == 1.0)
        stage(run, f"evaluate-{name}", 7, 3.0)
        for split in ("test", "unseen"):
            outcomes(run, name, split, {"accuracy": [1.0, 1.0, 1.0, whole], "consistency": [1.0, whole]})
    instances(run, 2.0, [0.005, 0.006, 0.006, 0.0075])
    instances(run, 1.0, [0.0122, 0.0124, 0.0124, 0.0126])
    save(run / "results.json", results())
    return run


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A finished run folder in the format that the stages write."""
    return build_finished_run(tmp_path / "demo")


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, for tests that change nothing in it."""
    run = build_finished_run(tmp_path_factory.mktemp("reported") / "demo")
    write_report(run)
    return run


@pytest.fixture
def unfinished_run(tmp_path: Path) -> Path:
    """A run that was killed while it pre-trained."""
    run = tmp_path / "cut-off"
    save(run / "config.yaml", CONFIG)
    stage(run, "pretrain", 1, None, state="running")
    save(run / "stages" / "pretrain" / "progress.json", {"done": 640, "total": 6400, "unit": "samples"})
    save(run / "stages" / "pretrain" / "log.txt", "step 9\nstep 10\n")
    save(run / "stages" / "pretrain" / "metrics.jsonl", metric_lines(["itc"], 10) + '{"step": 11, "lo')
    return run


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """The folder of a comparison in which one run failed."""
    return build_comparison(tmp_path / "pruning")
