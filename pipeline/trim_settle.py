"""What became of a target: a trained model is settled on it, and an evaluated one is measured by it."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.measure.latency import Latency, alike, alone, packed_latency
from pipeline.tasks.classification import ClassificationModel
from pipeline.trim_plan import MOST_SHARE, Examples, Plan
from pipeline.trimming.calibrate import Calibration, calibrate
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target
from pipeline.trimming.trimmers import Trimmers

log = logging.getLogger(__name__)

_TOLD_NEAR = 0.01  # part of the wanted cost that told words may be off
_NEAR = 0.01  # part of the wanted time that is near enough
_FAR = 0.03  # and that is not, however noisy the clock
_APART = 0.03  # of the full cost
_TRIES = 5


@dataclass(frozen=True)
class Settled:
    """What became of a target on training's instances, once training is over.

    Attributes:
        shift: Added to every score after training.
        before: Mean cost over the full cost, before; None where nothing was measured.
        after: The same after.
        wanted: The target's amount.
        reached: The same as measured; None where nothing was.
        unit: Of both.
        latency: The last measurement of a time.
    """

    shift: float
    before: float | None
    after: float | None
    wanted: float
    reached: float | None
    unit: str
    latency: Latency | None = None


class _Told(NamedTuple):
    """A shift that was tried on a model that tells, and what its own words cost.

    Attributes:
        shift: Added to every score since the first of them.
        share: Of the full model's cost of the same words.
        whole: That cost, mean.
        off: How far `share` is from the wanted one, as a part of that.
    """

    shift: float
    share: float
    whole: float
    off: float


class Settler:
    """Settles a trained model on its target; one whose numbers were fixed before is only measured.

    Args:
        model: With training's shift in its trimmers; in evaluation mode, on the device.
        target: Wanted; a time only of models that have trimmers.
        batch: Instances to settle on.
        examples: How they are computed.
    """

    def __init__(self, model: ClassificationModel, target: Target, batch: ImageTextBatch, examples: Examples) -> None:
        self.model, self.target, self.batch, self.examples = model, target, batch, examples
        self.trimmers = model.trimmers if isinstance(model.trimmers, Trimmers) and model.trimmers.learned else None
        self.device = next(model.parameters()).device
        self.full_ms = math.inf
        self._take(list(examples.parts(batch, self.device)))

    def settle(self, plan: Plan) -> Settled:
        """Shifts all scores alike until the model costs what is wanted."""
        if self.target.unit == "ms":
            return self._settle_time(plan)
        if self.examples.retell is not None:
            return self._settle_told(self.examples.retell)
        done = self._spend(self._wanted)
        assert done.after is not None
        return self._settled(done.shift, done.before, done.after, float(self.full.mean()))

    @property
    def _wanted(self) -> float:
        """Part of the full cost of the instances as they are."""
        amount = self.target.amount
        return 1 / amount if self.target.unit == "x" else 1e9 * amount / float(self.full.mean())

    def _settled(self, shift: float, before: float | None, after: float, whole: float) -> Settled:
        reached = 1 / after if self.target.unit == "x" else after * whole / 1e9
        return Settled(shift, before, after, self.target.amount, reached, self.target.unit)

    def _settle_told(self, retell: Callable[[ClassificationModel, ImageTextBatch], ImageTextBatch]) -> Settled:
        """Settles the cost of the words that are told, tells again, until the new words cost what is wanted.

        Decisions do not look at words, so that a search for the shift takes no telling, which takes longest.
        """

        def told(shift: float) -> _Told:
            self._take([retell(self.model, part) for part in self.parts])
            share = self.share()
            return _Told(shift, share, float(self.full.mean()), abs(share / self._wanted - 1))

        tried = [told(0.0)]
        while tried[-1].off > _TOLD_NEAR and len(tried) <= _TRIES:
            moved = self._spend(self._wanted).shift
            if not moved:
                break  # these words come no nearer, and would be told again
            tried.append(told(tried[-1].shift + moved))
        best = min(tried, key=lambda each: each.off)
        if best is not tried[-1]:
            assert self.trimmers is not None, "something was shifted"
            self.trimmers.shift(best.shift - tried[-1].shift)
        return self._settled(best.shift, tried[0].share, best.share, best.whole)

    def _take(self, parts: list[ImageTextBatch]) -> None:
        """Goes on with these instances."""
        units = [units_of(self.model.backbone, each.token_mask) for each in parts]
        self.parts, self.full = parts, torch.cat([self.model.full_macs(each) for each in units]).double()

    def _spend(self, share: float) -> Calibration:
        """Has the model cost this part of the full cost, where its scores can be shifted."""
        if self.trimmers is not None:
            return calibrate(self.trimmers, self.share, share)
        found = self.share()
        return Calibration(0.0, found, found)

    def share(self) -> float:
        """Multiply-accumulates over the full model's."""
        return float(self._macs().sum() / self.full.sum())

    def _macs(self) -> Tensor:
        normalise = self.examples.normalise
        shares = [self.model.cost_shares(normalise(p.pixels), p.token_ids, p.token_mask) for p in self.parts]
        return torch.cat(shares).double() * self.full

    def _settle_time(self, plan: Plan) -> Settled:
        """All scores' shift from training's end is what the tried ones add up to."""
        assert self.trimmers is not None, "times are refused where nothing is scored"
        done: list[Calibration] = []
        self.full_ms = plan.full_ms

        def spend(share: float) -> float:
            done.append(self._spend(share))
            assert done[-1].after is not None
            return done[-1].after

        tried = settle_time(self.target.amount, plan, spend, self._measure)
        best = min(range(len(tried)), key=lambda at: abs(tried[at][1].ms - self.target.amount))
        after, latency = tried[best]
        self.trimmers.shift(-sum(each.shift for each in done[best + 1 :]))
        shift = sum(each.shift for each in done[: best + 1])
        return Settled(shift, done[0].before, after, self.target.amount, latency.ms, "ms", latency)

    def _measure(self) -> Latency:
        """Measured against the untrimmed model, by the least that this one has taken: other work drops out."""
        config, macs = self.examples.latency, self._macs().tolist()
        rows = alike(macs, macs, config.instances)
        latency = packed_latency(self.model, alone(self.batch, rows, self.examples.normalise, self.device), config)
        self.full_ms = min(self.full_ms, latency.full_ms)
        return latency.where_full_takes(self.full_ms)


def settle_time(
    wanted: float, plan: Plan, spend: Callable[[float], float], measure: Callable[[], Latency]
) -> list[tuple[float, Latency]]:
    """Looks for the cost that takes the wanted time: times are noisy, costs are not.

    Args:
        wanted: Milliseconds.
        plan: Where to begin, and how time follows cost.
        spend: Has the model cost this part of the full cost; gives what it costs then.
        measure: The time that this takes.

    Returns:
        Costs and times in the order in which they were tried; one of them comes nearest.
    """
    share, tried = 1 / plan.speed_up, []
    for _ in range(_TRIES):
        spent, latency = spend(share), measure()
        tried.append((spent, latency))
        log.info("%.4g of the multiply-accumulates take %.4g ms; wanted: %.4g ms", spent, latency.ms, wanted)
        noise = min(latency.high - latency.ms, latency.ms - latency.low)
        if abs(latency.ms - wanted) <= min(max(_NEAR * wanted, noise), _FAR * wanted):
            break
        share = min(max(spent + (wanted - latency.ms) / _slope(tried, plan.slope), spent / 2), MOST_SHARE)
    return tried


def _slope(tried: Sequence[tuple[float, Latency]], planned: float) -> float:
    """Milliseconds that the whole cost takes, by the last two tries where they are far enough apart to tell."""
    if len(tried) < 2 or abs(tried[-1][0] - tried[-2][0]) < _APART:
        return planned
    (share, latency), (earlier, before) = tried[-1], tried[-2]
    return min(max((latency.ms - before.ms) / (share - earlier), planned / 2), 2 * planned)


def reached(
    target: Target, macs: Sequence[float], full: Sequence[float], time: Callable[[], Latency]
) -> dict[str, Any]:
    """Wanted and reached, for a row of results.

    Args:
        target: Of the model.
        macs: Of each instance, as it was decided.
        full: Of the untrimmed model.
        time: Measures, where the target is a time.

    Returns:
        "wanted", "reached" and "unit"; of a time also "reached_low", "reached_high", "full_ms" and "threads".
    """
    row: dict[str, Any] = {"wanted": target.amount, "unit": target.unit}
    if target.unit == "ms":
        latency = time()
        measured = {"reached_low": latency.low, "reached_high": latency.high, "full_ms": latency.full_ms}
        return {**row, "reached": latency.ms, **measured, "threads": latency.threads}
    mean = sum(macs) / len(macs)
    return {**row, "reached": sum(full) / len(full) / mean if target.unit == "x" else mean / 1e9}
