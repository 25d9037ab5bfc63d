"""The search for the largest batch, on memory that is known."""

from collections.abc import Callable

import pytest

from data_prep.errors import UserError
from pipeline.measure.largest_batch import largest_batch


def memory(fixed: float, slope: float, bend: float = 0.0, room: int = 10**9) -> Callable[[int], int | None]:
    """Bytes of a batch; no room is found above `room`, as where memory is in pieces."""
    return lambda batch: None if batch > room else int(fixed + slope * batch + bend * batch**2)


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("first", [8, 64, 1000])
@pytest.mark.parametrize(
    "take", [memory(100, 10), memory(100, 10, 0.001), memory(100, 9, -0.001), memory(0, 10, room=300)]
)
def test_what_is_found_fits_and_a_step_more_does_not(take: Callable[[int], int | None], first: int, step: int) -> None:
    found = largest_batch(take, 5000, first, step)
    assert found.over == found.batch + step and found.batch % step == 0
    assert take(found.batch) == found.peak <= 5000
    more = take(found.over)
    assert more is None or more > 5000


def test_memory_that_is_a_line_takes_four_probes() -> None:
    asked: list[int] = []
    take = memory(100, 10)
    found = largest_batch(lambda batch: asked.append(batch) or take(batch), 5000, 32, 8)
    assert asked == [32, 64, 488, 496] and found.probes == 4


def test_no_room_for_a_single_step_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match=r"a batch of 8 does not fit into 0\.00 GiB"):
        largest_batch(memory(100, 10), 50, 64, 8)
    with pytest.raises(UserError, match="does not fit"):
        largest_batch(lambda batch: None, 50, 64, 8)
