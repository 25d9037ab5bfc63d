import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.seeds import draw, generator, permutation


@given(st.integers(0, 50), st.integers())
def test_permutation_has_each_number_once(count: int, seed: int) -> None:
    assert sorted(permutation(count, seed)) == list(range(count))


def test_draws_stay_the_same_in_every_process_and_version() -> None:
    # Pinned: a change here changes the order of every run, and must be declared.
    assert permutation(8, 0, "a", 3).tolist() == [2, 5, 6, 0, 7, 4, 1, 3]
    assert [draw(1000, 0, "a", i) for i in range(4)] == [349, 417, 65, 407]
    assert generator(7, "x").integers(0, 100, 4).tolist() == [91, 54, 73, 31]


def test_parts_do_not_run_into_each_other() -> None:
    assert draw(2**60, "a", 1) != draw(2**60, "a1")
    assert draw(2**60, 1, 23) != draw(2**60, 12, 3)


def test_numpy_integers_count_as_plain_ones() -> None:
    assert draw(2**60, np.int64(5), "a") == draw(2**60, 5, "a")
