"""Milliseconds of a statement, judged alone, on this machine: untrimmed, packed, and packed with a given part kept.

B batch, L text tokens, T packed tokens, H heads.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.limits import above_zero, at_least
from pipeline.measure.timing import interleave, median_interval, spread
from pipeline.models.schedule import TokenStream
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import units_of
from pipeline.trimming.trimmers import HeadTrimmer, TokenTrimmer, Trimmers

FULL = "full"
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST_ROUNDS = 101
_CANDIDATES = 16  # for each instance that is timed


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How milliseconds are taken: one instance at a time, packed, without reading the picture.

    Attributes:
        instances: Of a lap, chosen so that their costs are spread as those of all.
        rounds: Laps of each model at least, in turn with the others'; the median counts.
        seconds: About how long a measurement lasts: as many rounds as fit in.
    """

    instances: int = 16
    rounds: int = 9
    seconds: float = 20.0

    def __post_init__(self) -> None:
        at_least(self, "latency", 1, "instances")
        at_least(self, "latency", 6, "rounds")  # fewer give no interval
        above_zero(self, "latency", "seconds")


@dataclass(frozen=True)
class Latency:
    """A measured time.

    Attributes:
        ms: Median over rounds of the mean over instances.
        low: Where the median lies with 95%, by ranks: from here
        high: to here.
        full_ms: The untrimmed model's, in the same rounds.
        ratio: Median over rounds of the time over the untrimmed model's in the same round.
        ratio_low: Its interval: from here
        ratio_high: to here.
        rounds: Laps of each.
        instances: Of a lap.
        threads: Of torch.
        device: Where.
    """

    ms: float
    low: float
    high: float
    full_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    instances: int
    threads: int
    device: str

    def where_full_takes(self, full_ms: float) -> "Latency":
        """The same where the untrimmed model takes this time: how busy the machine was meanwhile drops out."""
        ms, low, high = (full_ms * ratio for ratio in (self.ratio, self.ratio_low, self.ratio_high))
        return replace(self, ms=ms, low=low, high=high, full_ms=full_ms)


class Instance(NamedTuple):
    """One picture and text on the device, the text cut to its own length."""

    pixels: Tensor
    ids_1L: Tensor
    mask_1L: Tensor


@dataclass(frozen=True)
class Curve:
    """Time against cost.

    Attributes:
        shares: Multiply-accumulates over the full model's, rising.
        ms: The times, never falling.
        full: The untrimmed model's time.
        least: The time with every token and head trimmed.
    """

    shares: list[float]
    ms: list[float]
    full: Latency
    least: Latency

    def share_at(self, ms: float) -> float:
        """The cost that takes this time, between the curve's ends."""
        return float(np.interp(ms, self.ms, self.shares))

    @property
    def slope(self) -> float:
        """Milliseconds that the whole cost takes."""
        return (self.ms[-1] - self.ms[0]) / (self.shares[-1] - self.shares[0])


Normalise = Callable[[Tensor], Tensor]


def candidates(config: LatencyConfig) -> int:
    """How many instances to choose the timed ones from."""
    return config.instances * _CANDIDATES


def alike(costs: Sequence[float], among: Sequence[float], count: int) -> list[int]:
    """Which of the candidates to time, so that their costs are spread as `costs` are, the mean too.

    Args:
        costs: Of all instances that a time is wanted for.
        among: Of the candidates.
        count: How many to choose.
    """
    wanted = np.quantile(np.asarray(costs), (np.arange(count) + 0.5) / count)
    return [int(at) for at in np.abs(np.asarray(among)[None] - wanted[:, None]).argmin(1)]


def alone(batch: ImageTextBatch, rows: Sequence[int], normalise: Normalise, device: torch.device) -> list[Instance]:
    """Rows of a batch, each for itself."""
    found = []
    for row in rows:
        length = int(batch.token_mask[row].sum())
        parts = (batch.pixels[row], batch.token_ids[row, :length], batch.token_mask[row, :length])
        pixels, ids_1L, mask_1L = (part[None].to(device) for part in parts)
        found.append(Instance(normalise(pixels), ids_1L, mask_1L))
    return found


def packed_latency(model: ClassificationModel, instances: Sequence[Instance], config: LatencyConfig) -> Latency:
    """Of a trimmed model as it decides, in turn with the untrimmed one."""
    runs = {FULL: partial(_lap, model, instances, False), "packed": partial(_lap, model, instances, True)}
    laps = _laps(runs, instances[0].pixels.device, config)
    return _latency(laps["packed"], laps[FULL], instances)


@torch.inference_mode()
def latency_curve(model: ClassificationModel, instances: Sequence[Instance], config: LatencyConfig) -> Curve:
    """Times with every layer keeping the same part of tokens and heads, whatever the trimmers would decide.

    Args:
        model: With trimmers, in evaluation mode.
        instances: To time.
        config: How long.
    """
    with _keeping(model) as keep:

        def lap(share: float) -> float:
            keep(share)
            return _lap(model, instances, True)

        def cost(share: float) -> float:
            keep(share)
            return _cost_share(model, instances)

        runs = {str(share): partial(lap, share) for share in _SHARES}
        laps = _laps({FULL: partial(_lap, model, instances, False), **runs}, instances[0].pixels.device, config)
        shares = [cost(share) for share in _SHARES]
    full = _latency(laps[FULL], laps[FULL], instances)
    each = [_latency(laps[str(share)], laps[FULL], instances).where_full_takes(full.ms) for share in _SHARES]
    rising = np.maximum.accumulate([latency.ms for latency in each])
    return Curve(shares, rising.tolist(), full, each[0])


def _laps(
    runs: Mapping[str, Callable[[], float]], device: torch.device, config: LatencyConfig
) -> dict[str, list[float]]:
    """As many rounds as fit in, after a first one that allocates and one that says how many those are."""
    interleave(runs, rounds=1, warmup=0, seed=0)
    begin = time.perf_counter()
    interleave(runs, rounds=1, warmup=0, seed=0)
    fitting = int(config.seconds / (time.perf_counter() - begin))
    return interleave(runs, rounds=min(max(config.rounds, fitting), _MOST_ROUNDS), warmup=0, seed=0)


def _latency(laps: Sequence[float], full: Sequence[float], instances: Sequence[Instance]) -> Latency:
    ratios = [lap / whole for lap, whole in zip(laps, full, strict=True)]
    device = instances[0].pixels.device.type
    return Latency(
        *_median(laps),
        spread(full).median,
        *_median(ratios),
        len(laps),
        len(instances),
        torch.get_num_threads(),
        device,
    )


def _median(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its interval."""
    interval = median_interval(values)
    assert interval is not None, "the configuration asks for enough rounds"
    return spread(values).median, *interval


@torch.inference_mode()
def _lap(model: ClassificationModel, instances: Sequence[Instance], packed: bool) -> float:
    """Milliseconds an instance."""
    device = instances[0].pixels.device
    wait_for(device)
    begin = time.perf_counter()
    for pixels, ids_1L, mask_1L in instances:
        trimming = model.trimming(ids_1L, mask_1L) if packed else None
        model.classify(pixels, ids_1L, mask_1L, [] if trimming is None else [trimming])
    wait_for(device)
    return 1000 * (time.perf_counter() - begin) / len(instances)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cost_share(model: ClassificationModel, instances: Sequence[Instance]) -> float:
    """Multiply-accumulates of the packed model over the full one's."""
    spent, full = 0.0, 0.0
    for pixels, ids_1L, mask_1L in instances:
        trimming, units = model.trimming(ids_1L, mask_1L), units_of(model.backbone, mask_1L)
        assert trimming is not None
        model.classify(pixels, ids_1L, mask_1L, [trimming])
        spent += float(model.macs(trimming.decisions, units))
        full += float(model.full_macs(units))
    return spent / full


@contextmanager
def _keeping(model: ClassificationModel) -> Iterator[Callable[[float], None]]:
    """While it lasts, trimmers and what is fixed beside them keep the part that is given to what it yields."""
    assert isinstance(model.trimmers, Trimmers), "only what is scored is timed before training"
    trimmers, before = model.trimmers, model.trimmers.share
    keep: list[float] = [1.0]
    handles = []

    def keep_part(share: float) -> None:
        keep[0] = share
        trimmers.set_share(share)

    for module in trimmers.modules():
        if isinstance(module, TokenTrimmer):
            handles.append(module.register_forward_hook(partial(_some_tokens, keep)))
        elif isinstance(module, HeadTrimmer):
            handles.append(module.register_forward_hook(partial(_some_heads, keep)))
    try:
        yield keep_part
    finally:
        trimmers.set_share(before)
        for handle in handles:
            handle.remove()


def _some_tokens(keep: list[float], _: TokenTrimmer, given: tuple[TokenStream, ...], scores_T: Tensor) -> Tensor:
    origin_T = given[0].origin
    assert origin_T is not None, "tokens know where they came from"
    return _evenly(origin_T, keep[0]).to(scores_T.dtype)


def _some_heads(keep: list[float], _: HeadTrimmer, given: tuple[Tensor, ...], scores_BH: Tensor) -> Tensor:
    number_H = torch.arange(scores_BH.shape[-1], device=scores_BH.device)
    return _evenly(number_H, keep[0]).to(scores_BH.dtype).expand_as(scores_BH)


def _evenly(numbers: Tensor, share: float) -> Tensor:
    """1 for this share of the numbers, spread over all of them as in a trained model; -1 for the others."""
    return torch.where(((numbers + 1) * share).floor() > (numbers * share).floor(), 1.0, -1.0)
