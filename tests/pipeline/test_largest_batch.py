"""The search for the largest batch, on memory that is known."""

from collections.abc import Callable

import pytest

from pipeline.measure.largest_batch import Bounds, Probe, search

LIMIT = 5000
Memory = Callable[[int], Probe]


def memory(fixed: float, slope: float, bend: float = 0.0, room: int = 10**9) -> Memory:
    """Bytes of a batch; no room is found above `room`, as where memory is in pieces."""

    def of(batch: int) -> Probe:
        taken = int(fixed + slope * batch + bend * batch**2)
        return Probe(batch, taken <= LIMIT and batch <= room, taken)

    return of


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("second", [64, 1000])
@pytest.mark.parametrize(
    "take", [memory(100, 10), memory(100, 10, 0.001), memory(100, 9, -0.001), memory(0, 10, room=300)]
)
def test_what_is_found_fits_and_a_step_more_does_not(take: Memory, second: int, step: int) -> None:
    found = search(take, Bounds(limit_bytes=LIMIT, first=(2 * step, second), step=step, probes=40))
    assert found.settled and found.largest is not None and found.next_up is not None
    assert found.next_up.batch == found.largest.batch + step and found.largest.batch % step == 0
    assert take(found.largest.batch).fits and not take(found.next_up.batch).fits


def test_memory_that_is_a_line_takes_four_probes() -> None:
    found = search(memory(100, 10), Bounds(limit_bytes=LIMIT, first=(16, 64), step=8))
    assert list(found.probes) == [16, 64, 488, 496]


def test_nothing_is_found_where_the_first_has_no_room() -> None:
    found = search(memory(LIMIT, 10), Bounds(limit_bytes=LIMIT, first=(16, 64), step=8))
    assert found.largest is None and list(found.probes) == [16]
