from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from pipeline.data.mix import Mix, deal, quotas

quota_lists = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@given(quota_lists)
def test_every_prefix_of_a_deal_is_within_one_slot_of_the_ratio(quota: list[int]) -> None:
    order, total = deal(quota), sum(quota)
    for k, share in enumerate(quota):
        counts = np.cumsum(order == k)
        exact = np.arange(1, total + 1) * share / total
        assert np.abs(counts - exact).max() < 1
        assert counts[-1] == share


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1], [1]),
        ([3.0, 1.0], [3, 1]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([100_000, 200_000], [1, 2]),
    ],
)
def test_plain_ratios_are_exact(weights: list[float], expected: list[int]) -> None:
    assert quotas(weights) == expected


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_other_ratios_are_rounded_to_thousandths_and_lose_no_source(weights: list[float]) -> None:
    quota = quotas(weights)
    assert min(quota) >= 1
    assert sum(quota) <= 1000
    for share, weight in zip(quota, weights, strict=True):
        assert abs(share / sum(quota) - weight / sum(weights)) < 0.01


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_a_weight_that_is_no_share_is_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="above 0"):
        quotas(weights)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 99))
def test_counts_before_a_round_are_those_of_counting(weights: list[int], streams: int, seed: int) -> None:
    mix = Mix(weights, streams, seed)
    before: Counter[tuple[int, int]] = Counter()
    for round_number in range(4 * streams * sum(weights)):
        for stream in range(streams):
            source, count = mix.at(round_number, stream)
            assert count == before[source, stream]
            before[source, stream] += 1


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([1, 2, 5]),
)
def test_every_batch_keeps_the_ratio_and_every_stream_the_pace(weights: list[int], streams: int, rounds: int) -> None:
    mix, total = Mix(weights, streams, 1), sum(weights)
    per_stream: Counter[tuple[int, int]] = Counter()
    seen: Counter[int] = Counter()
    for step in range(streams * total):
        batch: Counter[int] = Counter()
        for round_number in range(step * rounds, (step + 1) * rounds):
            for stream in range(streams):
                source = mix.at(round_number, stream)[0]
                batch[source] += 1
                per_stream[source, stream] += 1
        seen += batch
        for k, weight in enumerate(weights):
            assert abs(batch[k] - streams * rounds * weight / total) < 2
            assert abs(seen[k] - (step + 1) * streams * rounds * weight / total) < 1
    # streams * total steps are whole cycles of the deal and its rotation: nobody is ahead.
    for k in range(len(weights)):
        assert len({per_stream[k, stream] for stream in range(streams)}) == 1


def test_a_ratio_that_divides_the_batch_is_met_in_every_batch() -> None:
    mix = Mix([3, 1], 4, 0)
    for first, end in pairwise(range(0, 64, 2)):
        counts = Counter(mix.at(r, stream)[0] for r in range(first, end) for stream in range(4))
        assert counts == {0: 6, 1: 2}
