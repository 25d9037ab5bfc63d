"""Numbers of the log that no step computes: rates of parts, tokens that stay, what the device makes of its time."""

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.engine_config import EngineConfig, autocast_dtype
from pipeline.measure.peak import peak_flops
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig

_CLEAR = Path("/proc/self/clear_refs")  # Linux; see its proc(5)
_CLEAR_PEAK = "5"


@dataclass(frozen=True, kw_only=True)
class LogFacts:
    """What the log says of a training besides its losses.

    Attributes:
        macs: Multiply-accumulates of one sample's step, forward and backward; None where nobody has counted them.
        lr_scales: Learning rates of named parts over the optimizer's.
        tokens: Vision tokens, CLS included, by the layer from which on there are so many.
        peak_flops: Of a device, in operations a second; None where it is not known.
        restarts: How often the stage was started before.
    """

    macs: float | None = None
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[int, int] = field(default_factory=dict)
    peak_flops: float | None = None
    restarts: int = 0

    def values(self, lr: float) -> dict[str, float]:
        """What stands in every line: rates of parts, tokens that stay, restarts."""
        rates = {f"lr/{name}": lr * scale for name, scale in self.lr_scales.items()}
        return rates | {f"tokens/layer_{layer}": n for layer, n in self.tokens.items()} | {"restarts": self.restarts}

    def speed(self, samples_per_second: float, devices: int) -> dict[str, float]:
        """What the devices do, at a rate of all of them together.

        Args:
            samples_per_second: Of all processes.
            devices: How many processes.

        Returns:
            Rates of a device; TFLOP/s of the model's own operations, and which share of the peak they are, as far as
            both are known. Operations that are done twice to save memory count once.
        """
        each = samples_per_second / devices
        speed = {"samples_per_second": round(samples_per_second, 2), "samples_per_second_per_device": round(each, 2)}
        if self.macs is None:
            return speed
        flops = 2 * self.macs * each
        speed["tflops_per_device"] = float(f"{flops / 1e12:.4g}")
        if self.peak_flops is not None:
            speed["mfu"] = round(flops / self.peak_flops, 4)
        return speed


def device_peak(process: Process, engine: EngineConfig, peak_tflops: float | None) -> float | None:
    """Operations a second of a process's device at most; None where it is not known.

    Args:
        process: On a GPU, or on the CPU, of which no peak is known.
        engine: Says in which precision products are made.
        peak_tflops: The user's own number, which wins.
    """
    if peak_tflops is not None:
        return 1e12 * peak_tflops
    device = process.torch_device
    if device.type != "cuda":
        return None
    # Products of both kinds of 16 bits are equally fast.
    dtype = "float32" if autocast_dtype(engine, device) is None else "bfloat16"
    return peak_flops(torch.cuda.get_device_name(device), dtype)


def kept_tokens(pruning: PruningConfig, depth: int, patches: int) -> dict[int, int]:
    """Tokens that the MLPs of the vision tower get, by the layer from which on there are so many.

    Args:
        pruning: Method and its settings.
        depth: Layers of the tower.
        patches: Of the picture.
    """
    tokens = [layer.mlp for layer in pruning.tokens_by_layer(depth, patches)]
    return {layer: n for layer, n in enumerate(tokens) if layer == 0 or n != tokens[layer - 1]}


def memory(device: str) -> dict[str, float]:
    """The most memory that this process has held so far, in GiB: resident, and of its GPU where it has one."""
    peaks = {"memory_gib": process_peak_bytes() / 2**30}
    if device.startswith("cuda"):
        peaks["device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 3) for name, value in peaks.items()}


def peak_bytes(device: str) -> int:
    """The most memory that this process has held: of the GPU where it trains on one, else resident on the CPU."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else process_peak_bytes()


def reset_peak(device: str) -> None:
    """Has `peak_bytes` begin anew: with what is held now. Where the system does not offer that, it goes on."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif os.access(_CLEAR, os.W_OK):
        _CLEAR.write_text(_CLEAR_PEAK)


def process_peak_bytes() -> int:
    """The most memory that this process has had in main memory."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:  # not Linux, whose ru_maxrss begins with what the process that started this one held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
