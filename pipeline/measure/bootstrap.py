"""Confidence intervals by resampling whole groups.

S series, I items, G groups, P numbers that add up, M scores, D draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError

_AT_ONCE = 1 << 18
"""Numbers of drawn groups that are held at once."""

_NAMED = 3
"""Instances that an error names."""


@dataclass(frozen=True)
class Interval:
    """A score, such as a mean, and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """A number for each of several items; a score is their mean.

    Attributes:
        names: Of the items, all different.
        values: Of each; finite.
        groups: What each belongs to; items of a group are drawn together.
    """

    names: Sequence[str]
    values: Sequence[float]
    groups: Sequence[str]


def group_interval(values: Sequence[float], groups: Sequence[str], seed: int = 0, draws: int = 2000) -> Interval:
    """Mean of `values` with the interval that resampling groups gives.

    Args:
        values: One number per item; must be finite.
        groups: What each item belongs to; items of a group are drawn together.
        seed: Of the resampling.
        draws: Number of resamples.

    Returns:
        Mean, 2.5% and 97.5% quantile.

    Raises:
        ValueError: There is nothing to average, or a value is not finite.
    """
    return joint_interval([(values, groups)], seed, draws)


def joint_interval(
    series: Sequence[tuple[Sequence[float], Sequence[str]]], seed: int = 0, draws: int = 2000
) -> Interval:
    """Mean of the means of several series over the same groups, such as recalls of images and of their captions.

    Args:
        series: Values and groups of each, as `group_interval` takes them.
        seed: Of the resampling.
        draws: Number of resamples.

    Raises:
        ValueError: There is nothing to average, a value is not finite, or the series have different groups.
    """
    named = [np.unique(np.asarray(groups), return_inverse=True) for _, groups in series]
    totals, counts, means = [], [], []
    for (values, _), (names, group) in zip(series, named, strict=True):
        numbers = np.asarray(values, dtype=np.float64)
        if not len(numbers) or not np.isfinite(numbers).all():
            raise ValueError(f"{len(numbers)} values, {int((~np.isfinite(numbers)).sum())} of them not finite")
        if not np.array_equal(names, named[0][0]):
            raise ValueError("series that are resampled together must have the same groups")
        ordered = np.lexsort((numbers, group))  # sums have then the same bits in whatever order the items came
        numbers, group = numbers[ordered], group[ordered]
        totals.append(np.bincount(group, numbers))
        counts.append(np.bincount(group))
        means.append(numbers.mean())
    drawn = _resampled(np.stack(totals), np.stack(counts), seed, draws)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.mean(means)), float(low), float(high))


def summed_intervals(
    parts_IP: NDArray[np.float64],
    groups: Sequence[str],
    scored: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    seed: int = 0,
    draws: int = 2000,
) -> list[Interval]:
    """Scores that are no means, but are made of sums over all items, as BLEU is of its counts of n-grams.

    Args:
        parts_IP: What each item adds to the sums; whole numbers, so that their order changes no bit.
        groups: What each item belongs to; items of a group are drawn together.
        scored: Gives the scores (D, M) of D sets of items, told by their sums (D, P).
        seed: Of the resampling, which draws the groups that `group_interval` does.
        draws: Number of resamples.

    Returns:
        Each of the M scores of all items, with its 2.5% and 97.5% quantile.

    Raises:
        ValueError: A score is not finite.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    total_PG = np.stack([np.bincount(group, part_I, len(names)) for part_I in parts_IP.T])
    sums_PD = np.concatenate([total_PG.sum(1, keepdims=True), _drawn_sums(total_PG, seed, draws)], 1)
    scores_DM = scored(sums_PD.T)
    if not np.isfinite(scores_DM).all():
        raise ValueError(f"{int((~np.isfinite(scores_DM)).sum())} of {scores_DM.size} resampled scores are not finite")
    low_M, high_M = np.quantile(scores_DM[1:], [0.025, 0.975], axis=0)
    return [Interval(*map(float, each)) for each in zip(scores_DM[0], low_M, high_M, strict=True)]


def _resampled(
    total_SG: NDArray[np.float64], count_SG: NDArray[np.int64], seed: int, draws: int
) -> NDArray[np.float64]:
    """(D,) the mean of each resample over all series."""
    mean_SD = _drawn_sums(total_SG, seed, draws) / _drawn_sums(count_SG, seed, draws)
    return np.asarray(mean_SD.mean(0))


def _drawn_sums(total_PG: NDArray[Any], seed: int, draws: int) -> NDArray[np.float64]:
    """(P, D) the sums of each resample; as many of them at once as memory is meant for."""
    rng, (parts, groups) = np.random.default_rng(seed), total_PG.shape
    drawn_PD = np.empty((parts, draws))
    step = max(1, _AT_ONCE // groups)
    for first in range(0, draws, step):
        taken_DG = rng.integers(0, groups, (min(step, draws - first), groups))
        drawn_PD[:, first : first + step] = total_PG[:, taken_DG].sum(2)
    return drawn_PD


def paired(one: Series, other: Series) -> Series:
    """By how much one model does better than another, item by item.

    Args:
        one: Of the model.
        other: Of the model that it is held against, over the same items in any order.

    Raises:
        UserError: They have different items, or an item belongs to different groups.
    """
    names, own, others = _matched(one, other)
    groups, other_groups = np.asarray(one.groups)[own], np.asarray(other.groups)[others]
    if (moved := np.flatnonzero(groups != other_groups)).size:
        at = moved[0]
        raise UserError(
            f"two models were judged on instances of the same names but other data: {names[at]} belongs to "
            f"{groups[at]} here and to {other_groups[at]} there; evaluate both on one split"
        )
    values = np.asarray(one.values, np.float64)[own] - np.asarray(other.values, np.float64)[others]
    return Series(names=names.tolist(), values=values.tolist(), groups=groups.tolist())


def _matched(one: Series, other: Series) -> tuple[NDArray[np.str_], NDArray[np.intp], NDArray[np.intp]]:
    """Names of the items, and where they stand in either."""
    names, own = np.unique(np.asarray(one.names), return_index=True)
    there, others = np.unique(np.asarray(other.names), return_index=True)
    if len(names) < len(one.names) or len(there) < len(other.names):
        raise ValueError("items that are paired must have different names")
    if not np.array_equal(names, there):
        alone = {"here": np.setdiff1d(names, there), "there": np.setdiff1d(there, names)}
        told = " and ".join(_some(each, where) for where, each in alone.items() if len(each))
        raise UserError(f"two models were not judged on the same instances: {told}; evaluate both on one split")
    return names, own, others


def _some(names: NDArray[np.str_], where: str) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} are only {where} ({', '.join(names[:_NAMED].tolist())}{more})"


def paired_interval(
    pairs: Sequence[tuple[Sequence[Series], Sequence[Series]]], seed: int = 0, draws: int = 2000
) -> Interval:
    """By how much models score better than others on the same items, with the interval of this difference.

    What both find easy or hard drops out, so that the interval is narrower than those of the two scores. It tells how
    far the difference hangs on the items that were drawn; the models themselves stay as they are.

    Args:
        pairs: For each pair of models, such as those of one seed, the series of either one's score. Pairs are pooled:
            an item of any of them counts alike, and groups of one name are drawn together wherever they stand.
        seed: Of the resampling.
        draws: Number of resamples.

    Returns:
        Mean difference, 2.5% and 97.5% quantile.

    Raises:
        UserError: A pair was not judged on the same items.
        ValueError: There is nothing to compare, or a value is not finite.
    """
    differences = [[paired(*each) for each in zip(one, other, strict=True)] for one, other in pairs]
    pooled = zip(*differences, strict=True)
    return joint_interval(
        [([v for part in parts for v in part.values], [g for part in parts for g in part.groups]) for parts in pooled],
        seed,
        draws,
    )
