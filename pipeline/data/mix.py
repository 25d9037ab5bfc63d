"""Which source each slot of a batch belongs to, when a batch mixes several sources.

Slots are dealt in rounds: one round gives one slot to each of the C streams. Two things must hold at once:
every batch has the sources in their ratio, and every stream of a source is used up at the same pace. The
first is Tijdeman's chairman assignment along the rounds; the second is a rotation of the streams from round
to round.

Legend: C streams, K sources, T period of the deal in slots, R its period in rounds.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from pipeline.data.seeds import draw

_LONGEST_PERIOD = 1000


def quotas(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers in their ratio; the sum T is at most 1000.

    Weights such as 3:1 or 0.7:0.2:0.1 come out exact; others are rounded to thousandths of the batch, at
    least one each.

    Raises:
        UserError: a weight is not above 0.
    """
    if not weights or any(not 0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights of the sources are {list(weights)}; each must be a number above 0")
    parts = [Fraction(weight).limit_denominator(_LONGEST_PERIOD) for weight in weights]
    scale = lcm(*(part.denominator for part in parts))
    whole = [int(part * scale) for part in parts]
    common = int(np.gcd.reduce(np.array(whole, dtype=object)))
    if common and min(whole) > 0 and sum(whole) // common <= _LONGEST_PERIOD:
        return [number // common for number in whole]
    return _largest_remainders([weight / sum(weights) for weight in weights], _LONGEST_PERIOD)


def _largest_remainders(shares: list[float], total: int) -> list[int]:
    free = total - len(shares)
    floors = [1 + int(share * free) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda k: -(shares[k] * free % 1))
    for k in by_remainder[: total - sum(floors)]:
        floors[k] += 1
    return floors


def deal(quota: Sequence[int]) -> NDArray[np.int64]:
    """Source of each of the T = sum(quota) slots, shape (T,).

    Every prefix is within one slot of the exact ratio, and meets it wherever the exact share is whole. By
    Tijdeman (1980): among the sources that may take a slot without running ahead, the one whose deadline is
    next.
    """
    sources, total = len(quota), sum(quota)
    if sources == 1:
        return np.zeros(total, dtype=np.int64)
    taken = [0] * sources
    order = np.empty(total, dtype=np.int64)
    span = 2 * sources - 2  # lags below are scaled by total * span to stay whole numbers
    for slot in range(1, total + 1):
        lags = [span * (quota[k] * slot - taken[k] * total) for k in range(sources)]
        able = [k for k in range(sources) if lags[k] >= total]
        best = min(able, key=lambda k: (Fraction((span - 1) * total - lags[k], quota[k]), k))
        order[slot - 1] = best
        taken[best] += 1
    return order


class Mix:
    """Which source has the slot of a round and stream, and how far the stream is in that source, in O(1)."""

    def __init__(self, weights: Sequence[float], streams: int, seed: int) -> None:
        """Deals the slots once; everything later is a look-up.

        Args:
            weights: one a source, in any unit.
            streams: C.
            seed: of the run; it sets with which stream the rotation begins.
        """
        self._streams = streams
        self._turn = draw(streams, seed, "mix")
        order = deal(quotas(weights))
        self._rounds = lcm(len(order), streams) // streams  # R
        rounds = np.arange(self._rounds)
        lanes = np.arange(streams)[:, None]
        # In round x the stream of lane d stands at place (d - x) mod C: neighbours in the deal go to all
        # streams in turn.
        self._source_CR = order[(rounds * streams + (lanes - rounds) % streams) % len(order)]
        one_hot = self._source_CR[..., None] == np.arange(len(weights))
        counts = np.zeros((streams, self._rounds + 1, len(weights)), dtype=np.int64)
        np.cumsum(one_hot, axis=1, out=counts[:, 1:])
        self._before_CRK = counts
        # After each R rounds a stream moves to the next lane; after C such laps it has been in all of them.
        laps = np.zeros((streams, streams + 1, len(weights)), dtype=np.int64)
        lap_lane = (lanes - np.arange(streams)) % streams
        np.cumsum(counts[lap_lane, self._rounds], axis=1, out=laps[:, 1:])
        self._laps_CCK = laps

    def at(self, round_number: int, stream: int) -> tuple[int, int]:
        """Source of the slot of this round and stream, and how many of that source the stream had before."""
        cycles, rest = divmod(round_number, self._rounds * self._streams)
        lap, x = divmod(rest, self._rounds)
        first = (stream - self._turn) % self._streams
        lane = (first - lap) % self._streams
        source = int(self._source_CR[lane, x])
        before = cycles * self._laps_CCK[first, -1, source] + self._laps_CCK[first, lap, source]
        return source, int(before + self._before_CRK[lane, x, source])
