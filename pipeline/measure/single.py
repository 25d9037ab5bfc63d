"""Milliseconds of instances that come one at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.measure.latency import Instance, wait_for
from pipeline.measure.timing import spread

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class SingleLatency:
    """A measured time at batch 1, without reading the picture.

    Attributes:
        ms: Median over instances of each one's median over rounds.
        low: Lower quartile over instances.
        high: Upper quartile.
        instances: How many.
        threads: Of torch.
        device: Where.
    """

    ms: float
    low: float
    high: float
    instances: int
    threads: int
    device: str


@torch.inference_mode()
def single_latency(run: Callable[[Instance], object], instances: Sequence[Instance]) -> SingleLatency:
    """Times instances one after the other, `ROUNDS` times after a first one that allocates.

    Args:
        run: What an instance takes.
        instances: On their device.
    """
    laps = [[_milliseconds(run, instance) for instance in instances] for _ in range(1 + ROUNDS)][1:]
    found = spread([spread(times).median for times in zip(*laps, strict=True)])
    return SingleLatency(
        ms=found.median,
        low=found.low,
        high=found.high,
        instances=len(instances),
        threads=torch.get_num_threads(),
        device=instances[0].pixels.device.type,
    )


def _milliseconds(run: Callable[[Instance], object], instance: Instance) -> float:
    device = instance.pixels.device
    wait_for(device)
    begin = time.perf_counter()
    run(instance)
    wait_for(device)
    return 1000 * (time.perf_counter() - begin)
