"""The numbers of the log that no step computes, and what logging costs a step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.engine import EngineConfig
from pipeline.load_log import LoadTally
from pipeline.log_facts import LogFacts, device_peak, kept_tokens, memory, process_peak_bytes
from pipeline.loop_config import LoopConfig
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.tome import TomeConfig
from pipeline.stage import Stage
from pipeline.step_log import StepLog


def test_speed_and_utilisation_of_each_device() -> None:
    facts = LogFacts(macs=5e9, peak_flops=100e12)
    assert facts.speed(400.0, 4) == {
        "samples_per_second": 400.0,
        "samples_per_second_per_device": 100.0,
        "tflops_per_device": 1.0,
        "mfu": 0.01,
    }
    assert "mfu" not in LogFacts(macs=5e9).speed(400.0, 4)
    assert set(LogFacts(peak_flops=1e12).speed(8.0, 2)) == {"samples_per_second", "samples_per_second_per_device"}


def test_rates_of_parts_tokens_and_restarts() -> None:
    facts = LogFacts(lr_scales={"fusion_layers": 5.0, "temperature": 0.0}, tokens={0: 17, 3: 9}, restarts=2)
    assert facts.values(0.01) == {
        "lr/fusion_layers": 0.05,
        "lr/temperature": 0.0,
        "tokens/layer_0": 17,
        "tokens/layer_3": 9,
        "restarts": 2,
    }


def test_tokens_by_the_layer_from_which_on_there_are_so_many() -> None:
    elip = PruningConfig(elip=ElipConfig(depths=(2, 2, 6, 2)))
    assert kept_tokens(elip, 12, 196) == {0: 197, 2: 178, 4: 129, 10: 80}
    assert kept_tokens(PruningConfig(method="none"), 12, 196) == {0: 197}
    tome = PruningConfig(method="tome", tome=TomeConfig(merged_per_layer=4))
    assert kept_tokens(tome, 3, 16) == {0: 13, 1: 9, 2: 5}


def test_a_peak_is_the_users_or_known_and_never_that_of_a_cpu() -> None:
    assert device_peak(Process(), EngineConfig(), None) is None
    assert device_peak(Process(), EngineConfig(), 50.0) == 50e12


def test_memory_is_that_of_this_process() -> None:
    held = bytearray(64 << 20)
    held[:: 1 << 12] = b"1" * len(held[:: 1 << 12])
    peaks = memory("cpu")
    assert set(peaks) == {"memory_gib"}
    assert peaks["memory_gib"] > 1 / 16


def test_no_value_is_read_from_the_device_between_lines(tmp_path: Path) -> None:
    """Values of the meta device cannot be read at all: reading one would raise."""
    config = LoopConfig(samples=64, global_batch=8, log_every=4)
    log = StepLog(Stage(tmp_path, Process()), config, 0)
    with pytest.raises(RuntimeError):
        float(torch.ones((), device="meta"))
    for step in (1, 2, 3):
        values = {"loss": torch.ones(()), "temperature": torch.ones((), device="meta")}
        log.add(step, float(step), step / 8, values)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    with pytest.raises(NotImplementedError, match="meta"):
        log.add(4, 4.0, 0.5, values)


def test_a_line_has_the_means_and_all_that_is_told(tmp_path: Path) -> None:
    config = LoopConfig(samples=64, global_batch=8, log_every=2)
    log = StepLog(Stage(tmp_path, Process(world_size=1)), config, 0, LogFacts(macs=1e9, tokens={0: 5}, restarts=1))
    for step in (1, 2, 3, 4):
        log.add(step, 0.5 * step, step / 8, {"loss": torch.tensor(float(step)), "lr": torch.tensor(0.25)})
    assert log.load == LoadTally()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["loss"], second["loss"]) == (1.5, 3.5)
    assert "samples_per_second" not in first
    assert (second["samples_per_second"], second["tflops_per_device"]) == (16.0, 0.032)
    assert (second["tokens/layer_0"], second["restarts"], second["lr"]) == (5, 1, 0.25)
    assert second["memory_gib"] > 0


def test_the_peak_of_memory_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    held = bytearray(300 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    code = "from pipeline.log_facts import process_peak_bytes; print(process_peak_bytes())"
    # Started by exec from a fork, which is where ru_maxrss is handed on.
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    own = process_peak_bytes()
    assert own > 300 << 20
    assert 20 << 20 < int(told) < own - (100 << 20)
    del held
