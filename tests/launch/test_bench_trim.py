"""`trimline bench trim` at sizes of a second."""

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.bench_trim import trim_bench_text
from launch.cli import main
from launch.flops import read_model
from pipeline.measure import bench_trim
from pipeline.measure.bench_trim import BenchTrimConfig

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
    assert [row["flops_ratio"] / answer["padding"] for row in trimmed] == pytest.approx([1.5, 2.5], rel=0.1)
    told = trim_bench_text(answer)
    assert answer["padding"] == 1 and "padding" not in told if batch == "1" else 1 < answer["padding"] < 1.5
    assert batch == "1" or f"with padding, which is {answer['padding']:.3f} times without" in told
    for row in trimmed:
        assert 0 < row["trimmers_share"] < 0.05
        assert all(0 < share < 1 for share in row["kept"].values())
        assert row["realised"] == pytest.approx(row["ratio"] / row["flops_ratio"])
        assert {"text", "vision", "fusion text", "fusion image", "trimmers", "rest"} == set(row["parts"])
        assert all(seconds > 0 for seconds in row["parts"].values())
    assert "2.5x" in told


@torch.inference_mode()
@pytest.mark.parametrize("name", ["albef_tiny", "blip_tiny", "meter_tiny"])
def test_the_untrimmed_model_is_counted_as_it_is_timed_with_its_padding(name: str) -> None:
    sizes, config = read_model(name, 48), BenchTrimConfig(batch=3)
    model, inputs = bench_trim._model(sizes, config, None), bench_trim._inputs(sizes, config)
    with FlopCounterMode(display=False) as counter:
        bench_trim._classify(model, inputs, config)
    assert not inputs.mask_BL.all()
    assert 1e9 * bench_trim._work(model, [inputs], config)["gmacs"] == pytest.approx(counter.get_total_flops() / 2 / 3)


def test_a_lap_goes_through_different_batches(capsys: pytest.CaptureFixture[str]) -> None:
    """One instance again and again finds its sizes' code made already."""
    answer = bench(capsys, "--batches", "6", "--targets", "1.5")
    (full, trimmed), (one, _) = answer["rows"], bench(capsys, "--targets", "1.5")["rows"]
    assert answer["padding"] == 1 and full["gmacs"] != one["gmacs"]  # texts of several lengths, each alone
    assert trimmed["flops_ratio"] == pytest.approx(1.5, rel=0.2)
    assert full["value"] < 3 * one["value"]  # a batch, not a lap
    assert "batch 1 (6 different ones a lap)" in trim_bench_text(answer)


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
