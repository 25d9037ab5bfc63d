"""`trimline bench trim` at sizes of a second."""

import json
from typing import Any

import pytest
import torch

from launch.bench_trim import trim_bench_text
from launch.cli import main

TINY = ["--model", "meter_tiny", "--image-size", "48", "--rounds", "2", "--warmup", "1", "--threads", "1"]


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    threads = torch.get_num_threads()
    try:
        assert main(["bench", "trim", *TINY, "--device", "cpu", *words, "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("batch", ["1", "3"])
def test_trimmers_reach_their_targets_and_the_rest_is_told(capsys: pytest.CaptureFixture[str], batch: str) -> None:
    answer = bench(capsys, "--batch", batch, "--targets", "1.5,2.5")
    full, *trimmed = answer["rows"]
    assert (full["name"], full["ratio"], full["flops_ratio"], full["kept"]) == ("full", 1.0, 1.0, {})
    # A tiny model has few tokens and heads to choose from.
    assert [row["flops_ratio"] for row in trimmed] == pytest.approx([1.5, 2.5], rel=0.1)
    for row in trimmed:
        assert 0 < row["trimmers_share"] < 0.05
        assert all(0 < share < 1 for share in row["kept"].values())
        assert row["realised"] == pytest.approx(row["ratio"] / row["flops_ratio"])
        assert {"text", "vision", "fusion text", "fusion image", "trimmers", "rest"} == set(row["parts"])
        assert all(seconds > 0 for seconds in row["parts"].values())
    assert "2.5x" in trim_bench_text(answer)


def test_a_block_that_serves_text_and_fusion_is_timed_in_either_part(capsys: pytest.CaptureFixture[str]) -> None:
    full, trimmed = bench(capsys, "--model", "blip_tiny", "--targets", "1.5")["rows"]
    assert set(full["parts"]) == {"vision", "fusion", "rest"}  # nothing looks at the text alone
    assert {"text", "vision", "fusion", "trimmers", "rest"} == set(trimmed["parts"])
    assert all(seconds > 0 for row in (full, trimmed) for seconds in row["parts"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--targets", "0.5"], "must be speed-ups above 1"),
        (["--targets", "90"], "the highest target is"),
        (["--text-length", "1"], "bench.text_length=1 must be at least 2"),
        (["--text-length", "600"], "texts of 600; the model takes"),
        (["--model", "clip_tiny"], "has no fusion layers"),
        (["--image-size", "50"], "50"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(capsys, words: list[str], said: str) -> None:
    assert main(["bench", "trim", *TINY, *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
