"""`trimline bench` as its users meet it, at sizes of a second."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import launch
from launch.bench import bench_text
from launch.cli import main
from pipeline.measure.bench import timing_row, utilisation
from pipeline.measure.bench_cases import BenchConfig, build_bench
from pipeline.measure.peak import peak_flops
from pipeline.measure.saved_bytes import saved_bytes
from pipeline.measure.timing import Lap
from pipeline.measure.training_macs import Macs

ROOT = Path(launch.__file__).resolve().parent.parent
TINY = ["--model", "tiny", "--image-size", "32", "--batch", "2", "--rounds", "2", "--threads", "1", "--device", "cpu"]
ROW = {
    "name", "value", "unit", "ratio", "ratio_low", "ratio_high", "ratio_min", "ratio_q1", "ratio_q3", "flops_ratio",
    "peak_bytes", "saved_bytes", "saved_share", "forward_seconds", "backward_seconds", "forward_ratio",
    "backward_ratio", "gmacs", "mfu",
}  # fmt: skip


def bench(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "launch", "bench", *words, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_vision_bench_compares_all_guidances_and_states_its_settings() -> None:
    answer = bench("vision", *TINY)
    assert answer["reference"] == "unpruned"
    assert answer["device"] == "cpu"
    assert answer["device_name"]
    assert {name: answer[name] for name in ("model", "image_size", "patch", "batch", "rounds", "threads")} == {
        "model": "tiny", "image_size": 32, "patch": 16, "batch": 2, "rounds": 2, "threads": 1,
    }  # fmt: skip
    assert (answer["dtype"], answer["compile"], answer["text_length"]) == ("float32", False, None)
    assert {"commit", "torch", "includes", "flops_rule", "seed", "warmup"} <= set(answer)
    rows = {row["name"]: row for row in answer["rows"]}
    assert list(rows) == ["unpruned", "query", "stage", "evit", "tome", "flip"]
    assert all(set(row) == ROW for row in rows.values())
    assert rows["unpruned"]["ratio"] == rows["unpruned"]["flops_ratio"] == rows["unpruned"]["saved_share"] == 1.0
    assert rows["query"]["flops_ratio"] > rows["stage"]["flops_ratio"]
    assert rows["query"]["saved_bytes"] == rows["query"]["peak_bytes"] < rows["unpruned"]["saved_bytes"]
    assert all(row["value"] > 0 and row["unit"] == "s" and row["mfu"] is None for row in rows.values())
    text = bench_text(answer).splitlines()
    assert text[0].startswith("tiny model, 32 px, patch 16, batch 2, float32, not compiled, ")
    assert [line.split()[0] for line in text[1:6]] == ["variant", text[2], "unpruned", "query", "stage"]


def test_single_variants_can_be_asked_for() -> None:
    answer = bench("vision", *TINY, "--variants", "stage,query", "--rounds", "6", "--warmup", "1")
    assert [row["name"] for row in answer["rows"]] == ["unpruned", "query", "stage"]
    assert all(row["ratio_min"] <= row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in answer["rows"])
    assert answer["rows"][0]["ratio_low"] == answer["rows"][0]["ratio_high"] == 1.0
    assert "95% interval" in bench_text(answer)


def test_the_step_bench_also_prunes_the_momentum_tower() -> None:
    answer = bench("step", *TINY, "--text-length", "6", "--dtype", "bfloat16", "--rounds", "1", "--warmup", "1")
    assert (answer["text_length"], answer["dtype"]) == (6, "bfloat16")
    rows = {row["name"]: row for row in answer["rows"]}
    assert list(rows) == ["unpruned", "query", "stage", "query_momentum", "stage_momentum"]
    assert all(set(row) == ROW for row in rows.values())
    assert rows["query_momentum"]["flops_ratio"] > rows["query"]["flops_ratio"] > rows["stage"]["flops_ratio"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(("what", "rounds"), [("vision", 10), ("step", 6)])
def test_the_help_says_how_many_rounds_there_are(what: str, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", what, "--help"])
    assert f"every variant once, unpruned between them ({rounds})" in " ".join(capsys.readouterr().out.split())


def test_a_gpu_that_is_not_there_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "vision", "--device", "cuda"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "WHAT"),
        (["kitchen"], "kitchen"),
        (["vision", "--batch", "0"], "bench.batch=0"),
        (["vision", "--batch", "many"], "--batch"),
        (["vision", "--image-size", "225"], "try 224"),
        (["vision", "--image-size", "16"], "keeps 0 of 1 tokens"),
        (["vision", "--dtype", "float8"], "float8"),
        (["vision", "--rounds", "0"], "bench.rounds=0"),
        (["vision", "--warmup", "0"], "bench.warmup=0"),
        (["vision", "--threads", "-1"], "bench.threads=-1"),
        (["vision", "--patch", "0"], "bench.patch=0"),
        (["vision", "--model", "huge"], "huge"),
        (["vision", "--variants", "query,flash"], "'flash', which bench vision has not; it has query, stage, evit"),
        (["step", "--variants", "evit"], "it has query, stage, query_momentum, stage_momentum"),
        (["vision", "--text-length", "8"], "--text-length"),
        (["step", "--batch", "1"], "bench.batch=1 must be at least 2"),
        (["step", "--text-length", "1"], "bench.text_length=1"),
        (["step", "--text-length", "513"], "at most 512"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert expected in printed.err


def test_a_row_by_hand() -> None:
    reference = [Lap(1.0, 3.0), Lap(2.0, 6.0), Lap(1.0, 3.0)]  # beside each lap
    row = timing_row("query", [Lap(0.5, 1.5), Lap(1.0, 4.0), Lap(0.5, 2.5)], reference)
    assert (row["value"], row["forward_seconds"], row["backward_seconds"]) == (3.0, 0.5, 2.5)
    # By round 4/2, 8/5 and 4/3.
    assert row["ratio"] == pytest.approx(8 / 5)
    assert row["ratio_min"] == pytest.approx(4 / 3)
    assert row["ratio_low"] is row["ratio_high"] is None  # three rounds are too few for an interval
    assert (row["forward_ratio"], row["backward_ratio"]) == (2.0, 1.5)
    row = timing_row("query", [Lap(1.0, 1.0)] * 6, [Lap(1.0, total) for total in (5.0, 1.0, 2.0, 3.0, 2.0, 4.0)])
    assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == (1.0, 1.75, 3.0)


def test_a_pruned_tower_keeps_at_most_074_of_the_bytes_for_its_backward() -> None:
    bench = build_bench(BenchConfig(what="vision", model="tiny", batch=1))
    kept = {name: saved_bytes(case.forward, bench.standing()) for name, case in bench.cases.items()}
    assert kept["stage"] == kept["query"] <= 0.74 * kept["unpruned"]


def test_utilisation_is_what_the_steps_own_flops_take_of_the_peak() -> None:
    # (3 * 10 + 2) MACs of 2 FLOPs for each of 4 samples, in half a second.
    assert utilisation(Macs(10.0, 2.0), batch=4, seconds=0.5, limit=1024.0) == 0.5
    assert utilisation(Macs(10.0, 2.0), batch=4, seconds=0.5, limit=None) is None


def test_peaks_are_known_for_the_boards_that_are_named() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert (peak_flops("NVIDIA H200 NVL", "bfloat16"), peak_flops("NVIDIA H200", "bfloat16")) == (836e12, 989e12)
    assert peak_flops("NVIDIA H100 of tomorrow", "bfloat16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
