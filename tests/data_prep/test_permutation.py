import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.permutation import Permutation


@given(size=st.integers(1, 3000), seed=st.text(max_size=5))
def test_every_position_has_one_place(size, seed):
    assert np.array_equal(np.sort(Permutation(size=size, seed=seed).at(0, size)), np.arange(size))


@given(size=st.integers(1, 500), cut=st.integers(0, 500))
def test_a_part_is_a_part_of_the_whole(size, cut):
    order = Permutation(size=size, seed="x")
    cut = min(cut, size)
    assert np.array_equal(np.concatenate([order.at(0, cut), order.at(cut, size)]), order.at(0, size))


def test_the_order_is_the_same_for_ever():
    assert Permutation(size=20, seed="b").at(0, 8).tolist() == [15, 19, 8, 3, 12, 9, 16, 13]


def test_seeds_differ_and_shards_are_homogeneous():
    size = 100_000
    one, two = (Permutation(size=size, seed=seed).at(0, size) for seed in ("a", "b"))
    assert (one == two).mean() < 0.001
    # Each thousand's mean has a deviation of size / sqrt(12 * 1000), about 0.9% of the size.
    means = one.reshape(100, 1000).mean(axis=1) / size
    assert abs(means - 0.5).max() < 0.04
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("size", [2**40, 10**12])
def test_sizes_beyond_memory_are_fine(size):
    places = Permutation(size=size, seed="x").at(size - 1000, size)
    assert len(set(places.tolist())) == 1000
    assert places.min() >= 0
    assert places.max() < size
