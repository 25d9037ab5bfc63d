"""Times of several variants of one computation, taken in turn, and what they say of each other.

A machine's speed drifts; two variants timed one after the other differ by that too. `interleave` runs each variant once
a round, in an order drawn anew, to be compared with the reference of its own round; `bracket` runs the reference before
and after each variant besides, and compares with the mean of the two.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Lap:
    """Seconds of one forward and its backward."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Spread:
    """A sample's minimum, quartiles and median."""

    least: float
    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Minimum, lower quartile, median, upper quartile (linear between neighbours) of at least one value."""
    return Spread(*(float(np.percentile(values, share)) for share in (0, 25, 50, 75)))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Between which two of the values the median of what they are drawn from lies, in 95% of all samples at least.

    By ranks alone, so whatever the distribution (the sign test's interval); None for fewer than six values, between
    which 95% cannot be reached.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while (outside := outside + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


def paired_ratios(reference: Sequence[float], variant: Sequence[float]) -> list[float]:
    """How many times as fast as the reference the variant was, round by round."""
    return [mine / its for mine, its in zip(reference, variant, strict=True)]


def mean_lap(first: Lap, second: Lap) -> Lap:
    """What lies between two laps of the same thing."""
    return Lap((first.forward + second.forward) / 2, (first.backward + second.backward) / 2)


def timed_lap(forward: Callable[[], Tensor], gradient: Tensor | None, device: torch.device) -> Lap:
    """Seconds from calling `forward` to its result and from there to the gradients.

    On a GPU they are seconds of the device: events mark them, and nothing waits between forward and backward.

    Args:
        forward: Gives what the backward starts from.
        gradient: Of the result; None for a scalar.
        device: Where it runs.
    """
    marks = [_mark(device)]
    result = forward()
    marks.append(_mark(device))
    result.backward(gradient)
    marks.append(_mark(device))
    return Lap(_between(marks[0], marks[1]), _between(marks[1], marks[2]))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call; on a GPU of the device, from when it is free to begin until it has done the call's work."""
    begin = _mark(device)
    run()
    return _between(begin, _mark(device))


Mark = float | torch.cuda.Event


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Mark, second: Mark) -> float:
    if isinstance(first, torch.cuda.Event):
        assert isinstance(second, torch.cuda.Event)
        second.synchronize()
        return first.elapsed_time(second) / 1000
    assert not isinstance(second, torch.cuda.Event)
    return second - first


def interleave(
    runs: Mapping[str, Callable[[], T]],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, list[T]]:
    """Runs every variant once a round, in an order shuffled by `seed`.

    Args:
        runs: The variants.
        rounds: Rounds that count.
        warmup: Rounds before them that do not: first calls allocate, choose kernels and compile.
        seed: Of the order.
        tick: Called with a variant's name after each run of it.

    Returns:
        What each variant gave, its laps, by round.
    """
    draw = random.Random(seed)
    laps: dict[str, list[T]] = {name: [] for name in runs}
    for count in range(warmup + rounds):
        for name in draw.sample(list(runs), len(runs)):
            lap = runs[name]()
            if count >= warmup:
                laps[name].append(lap)
            tick(name)
    return laps


def bracket(
    runs: Mapping[str, Callable[[], Lap]],
    reference: str,
    *,
    rounds: int,
    warmup: int,
    seed: int,
    tick: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, list[Lap]], dict[str, list[Lap]]]:
    """Runs every other variant once a round, in an order shuffled by `seed`, and the reference between any two.

    Args:
        runs: The variants, the reference among them.
        reference: Name of what the others are compared with.
        rounds: Rounds that count.
        warmup: Rounds before them that do not.
        seed: Of the order.
        tick: Called with a variant's name after each run of it.

    Returns:
        By variant its laps, by round; and by variant, for each of them, the mean of the reference's laps before and
        after it. The reference stands beside itself.
    """
    draw, others = random.Random(seed), [name for name in runs if name != reference]
    laps: dict[str, list[Lap]] = {name: [] for name in runs}
    beside: dict[str, list[Lap]] = {name: [] for name in runs}

    def run(name: str) -> Lap:
        lap = runs[name]()
        tick(name)
        return lap

    for count in range(warmup + rounds):
        around = [run(reference)]
        for name in draw.sample(others, len(others)):
            lap = run(name)
            around.append(run(reference))
            if count >= warmup:
                laps[name].append(lap)
                beside[name].append(mean_lap(around[-2], around[-1]))
        if count >= warmup:
            laps[reference] += around
    return laps, {**beside, reference: laps[reference]}
