"""Intervals by resampling groups: of one series, of several together, of the difference of two models."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest

from data_prep.errors import UserError
from pipeline.measure import bootstrap
from pipeline.measure.bootstrap import (
    Interval,
    Series,
    group_interval,
    joint_interval,
    paired,
    paired_interval,
    summed_intervals,
)

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


def test_a_mean_told_by_its_sums_is_the_same_interval() -> None:
    rng = np.random.default_rng(3)
    values, groups = rng.integers(0, 9, 200), rng.integers(0, 40, 200).astype(str)
    parts = np.stack([values, np.ones(200), values**2], 1)
    mean, square = summed_intervals(parts, groups.tolist(), lambda sums_DP: sums_DP[:, [0, 2]] / sums_DP[:, [1]])
    assert mean == group_interval(values.tolist(), groups.tolist())
    assert square == group_interval((values**2).tolist(), groups.tolist())
    with pytest.raises(ValueError, match="2001 of 2001 resampled scores are not finite"):
        summed_intervals(parts, groups.tolist(), lambda sums_DP: np.full((len(sums_DP), 1), np.nan))


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_how_many_resamples_are_held_at_once_changes_no_bit(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    series = [(rng.random(90).tolist(), (np.arange(90) % 13).astype(str).tolist()) for _ in range(3)]
    wanted = joint_interval(series)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
    assert joint_interval(series) == wanted


def series(values: Sequence[float], groups: Sequence[str] = "aab", names: Sequence[str] = "xyz") -> Series:
    return Series(names=list(names), values=list(values), groups=list(groups))


def test_a_paired_interval_by_hand() -> None:
    one, other = series([1, 1, 0]), series([0, 1, 1])
    # Of group a +1 and 0, of b -1; resamples are aa (a quarter), ab (half) and bb: 1/2, 0 and -1.
    assert paired_interval([([one], [other])]) == Interval(0.0, -1.0, 0.5)
    shuffled = series([1, 0, 1], "baa", "zxy")
    assert paired_interval([([one], [shuffled])]) == Interval(0.0, -1.0, 0.5)
    assert paired(one, shuffled) == series([1, 0, -1])


def test_models_that_do_alike_differ_by_nothing_for_certain() -> None:
    rng = np.random.default_rng(0)
    own = series(
        (rng.random(300) < 0.7).astype(float).tolist(), [f"g{n // 4}" for n in range(300)], [*map(str, range(300))]
    )
    assert paired_interval([([own], [own])]) == Interval(0.0, 0.0, 0.0)


def test_groups_of_one_name_are_drawn_together_over_pairs() -> None:
    up, down = ([series([1, 0, 0])], [series([0, 0, 1])]), ([series([0, 0, 1])], [series([1, 0, 0])])
    assert paired_interval([up, down]) == Interval(0.0, 0.0, 0.0)
    other = tuple([series(each.values, "ccd") for each in part] for part in down)
    assert paired_interval([up, other]).high > 0


def judged(rng: np.random.Generator, groups: int, alike: float) -> tuple[Series, Series]:
    """Two models on four items of each group; how hard an item is, is the groups', its own, and each model's."""
    hard = rng.normal(size=(groups, 1)) + rng.normal(size=(groups, 4))
    own = [alike * hard + (1 - alike) * rng.normal(size=hard.shape) for _ in range(2)]
    names, of = [str(n) for n in range(4 * groups)], [f"g{n // 4}" for n in range(4 * groups)]
    rights = [(each < edge).ravel().astype(float).tolist() for each, edge in zip(own, (0.9, 0.6), strict=True)]
    return series(rights[0], of, names), series(rights[1], of, names)


def test_paired_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    rng, alike, found = np.random.default_rng(0), 0.6, 0
    spread = (2 * alike**2 + (1 - alike) ** 2) ** 0.5  # of what decides about an item
    normal = NormalDist()
    true = normal.cdf(0.9 / spread) - normal.cdf(0.6 / spread)
    for _ in range(300):
        interval = paired_interval([([one], [other]) for one, other in [judged(rng, 60, alike)]], draws=300)
        found += interval.low <= true <= interval.high
    assert 0.90 < found / 300 < 0.98


def test_a_paired_interval_is_narrower_where_models_find_the_same_items_hard() -> None:
    one, other = judged(np.random.default_rng(0), 200, 0.9)
    own = paired_interval([([one], [other])])
    alone = [group_interval(each.values, each.groups) for each in (one, other)]
    apart = sum((each.high - each.low) ** 2 for each in alone) ** 0.5  # as if they had nothing to do with each other
    assert own.high - own.low < 0.6 * apart
    assert own.value == pytest.approx(alone[0].value - alone[1].value)


def test_models_of_different_instances_are_not_paired() -> None:
    one = series([1, 0, 1])
    with pytest.raises(UserError, match=r"same instances: 1 are only here \(z\) and 1 are only there \(w\); evaluate"):
        paired(one, series([1, 0, 1], names="xyw"))
    many = series([1] * 9, "a" * 9, "abcdefxyz")
    with pytest.raises(UserError, match=r"same instances: 6 are only there \(a, b, c, \.\.\.\); evaluate"):
        paired(one, many)
    with pytest.raises(UserError, match=r"other data: z belongs to b here and to c there"):
        paired(one, series([1, 0, 1], "aac"))
    with pytest.raises(ValueError, match="different names"):
        paired(one, series([1, 0, 1], names="xyy"))
