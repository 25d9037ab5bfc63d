"""Intervals of several series that are resampled together."""

import numpy as np
import pytest

from pipeline.measure.bootstrap import group_interval, joint_interval

GROUPS = ["a", "b", "b", "c"]


def test_one_series_is_its_own_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    assert joint_interval([(values, GROUPS)]) == group_interval(values, GROUPS)


def test_series_that_make_up_for_each_other_are_certain_together() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0])
    found = joint_interval([(values.tolist(), GROUPS), ((1 - values).tolist(), GROUPS)])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert group_interval(values.tolist(), GROUPS).low < 0.5


def test_series_of_other_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="same groups"):
        joint_interval([([1.0], ["a"]), ([1.0], ["b"])])
    with pytest.raises(ValueError, match="not finite"):
        joint_interval([([1.0], ["a"]), ([np.nan], ["a"])])


def test_the_order_of_items_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.random(300), rng.integers(0, 40, 300).astype(str)
    found = {group_interval(values[order], groups[order]) for order in (rng.permutation(300) for _ in range(5))}
    assert len(found) == 1
