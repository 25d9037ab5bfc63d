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
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"{len(numbers)} values, {int((~np.isfinite(numbers)).sum())} of them not finite")
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    total, count = np.bincount(group, numbers), np.bincount(group)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        taken = rng.integers(0, len(total), len(total))
        means[draw] = total[taken].sum() / count[taken].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(numbers.mean()), float(low), float(high))
