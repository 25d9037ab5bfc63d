"""`trimline bench launch` at sizes of seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.files import read_json
from launch.bench_launch import launch_bench_text
from launch.bench_launch_work import FIRST, Gate, go_file, lap_file
from launch.cli import main
from pipeline.checkpoint_places import COMPLETE, name_of

CPU = torch.device("cpu")


def test_a_gate_lets_a_lap_through_at_a_time(tmp_path: Path) -> None:
    gate = Gate(tmp_path, steps=4, laps=2, checkpoints=None, device=CPU)
    assert gate.total == 2 + 2 * 4 + 1
    stream = gate.through(range(gate.total))
    assert next(stream) == 0 and not (tmp_path / FIRST).exists()
    assert next(stream) == 1 and (tmp_path / FIRST).exists()
    for lap in range(2):
        (tmp_path / go_file(lap)).touch()
        assert [next(stream) for _ in range(4)] == [2 + 4 * lap + step for step in range(4)]
        # Whoever asks for one more batch is done with the last one.
        assert not (tmp_path / lap_file(lap)).exists()
        if lap == 0:
            (tmp_path / go_file(1)).touch()
    assert list(stream) == [10]
    laps = [read_json(tmp_path / lap_file(lap)) for lap in range(2)]
    assert all(lap["seconds"] > lap["head_seconds"] > 0 and lap["checkpoint_bytes"] == 0 for lap in laps)
    assert gate.head == 1, "the second of a lap's four steps is followed by its checkpoint"


@pytest.mark.parametrize("steps", [3, 6])
def test_each_lap_has_one_checkpoint_and_waits_for_it(tmp_path: Path, steps: int) -> None:
    gate = Gate(tmp_path / "stage", steps, laps=3, checkpoints=tmp_path, device=CPU)
    (tmp_path / "stage").mkdir()
    for lap in range(3):
        (tmp_path / "stage" / go_file(lap)).touch()
    done = {step: (step - gate.begins - 1) // steps for step in range(1, gate.total + 1)}
    # The loop saves after every `steps`-th step, before it asks for the next batch: well inside of lap `lap`.
    assert [done[steps * (lap + 1)] for lap in range(3)] == [0, 1, 2]
    stream = gate.through(range(gate.total))
    for step in range(gate.total):
        if step and step % steps == 0:
            folder = tmp_path / name_of(step)
            folder.mkdir()
            (folder / COMPLETE).write_bytes(b"x" * 10)
        assert next(stream) == step
    laps = [read_json(tmp_path / "stage" / lap_file(lap)) for lap in range(3)]
    assert [lap["checkpoint_bytes"] for lap in laps] == [10, 10, 10]
    assert not list(tmp_path.glob("step_*")), "a bench keeps no checkpoints"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--every", "1"], "bench.every=1 must be at least 3"),
        (["--batch", "1"], "bench.batch=1 must be at least 2"),
        (["--rounds", "0"], "bench.rounds=0"),
        (["--threads", "0"], "bench.threads=0"),
        (["--model", "albef_huge"], "no configuration configs/models/albef_huge.yaml"),
        (["--image-size", "250"], "250"),
        (["--out", "/nowhere"], "bench.out=/nowhere is not a folder"),
        (["--threads", "4096"], "4096"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "launch", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("model", ["albef_tiny", "meter_tiny"])
def test_the_whole_way_is_measured_against_the_bare_loop(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image-size", "64", "--batch", "2", "--every", "3", "--rounds", "2", "--warmup", "0", "--parts"]
    assert main(["bench", "launch", "--model", model, *words, "--out", str(tmp_path), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in answer["rows"]}
    assert list(rows) == ["bare", "loop", "deepspeed", "trimline"]
    assert (answer["reference"], answer["model"], answer["every"], answer["batch"]) == ("bare", model, 3, 2)
    assert rows["bare"]["ratio"] == 1.0 and rows["bare"]["cost"] == 0.0
    for row in rows.values():
        assert row["value"] > 0 and row["unit"] == "s" and row["peak_bytes"] > 10**8
        assert row["ratio_min"] <= row["ratio_q1"] <= row["ratio"] <= row["ratio_q3"]
    whole = rows["trimline"]
    assert answer["recipe_checkpoint_seconds"] == 900
    assert answer["recipe_cost"] == pytest.approx(whole["step_cost"] + whole["checkpoint_seconds"] / 900)
    assert rows["bare"]["step_cost"] == 0 and "with one every 900 s" in launch_bench_text(answer)
    # A checkpoint has weights and two moments, 4 bytes each, of some millions of parameters.
    assert answer["checkpoint_bytes"] > 12 * 3e6
    assert 0 < answer["first_step_seconds"] < 120 and answer["cluster_seconds"] > 0
    assert launch_bench_text(answer).splitlines()[1].split()[:3] == ["way", "s/step", "ratio"]
    assert not list(tmp_path.iterdir())
