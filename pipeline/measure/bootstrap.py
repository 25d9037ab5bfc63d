"""Confidence intervals by resampling whole groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


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
    total, count = np.stack(totals), np.stack(counts)
    rng = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for draw in range(draws):
        taken = rng.integers(0, total.shape[1], total.shape[1])
        drawn[draw] = (total[:, taken].sum(1) / count[:, taken].sum(1)).mean()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.mean(means)), float(low), float(high))
