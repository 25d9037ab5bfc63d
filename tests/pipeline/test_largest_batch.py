"""The search for the largest batch, on memory that is known."""

from collections.abc import Callable
from typing import Any

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


def test_what_is_tried_of_memory_that_is_a_line() -> None:
    found = search(memory(100, 10), Bounds(limit_bytes=LIMIT, first=(16, 64), step=8))
    assert list(found.probes) == [16, 64, 488, 496]


def test_nothing_is_found_where_the_first_has_no_room() -> None:
    found = search(memory(LIMIT, 10), Bounds(limit_bytes=LIMIT, first=(16, 64), step=8))
    assert found.largest is None and list(found.probes) == [16]


def straight(fixed: float, slope: float, limit: float, tried: list[int]) -> Any:
    def measure(batch: int) -> Probe:
        tried.append(batch)
        peak = int(fixed + slope * batch)
        return Probe(batch, peak <= limit, min(peak, int(limit) + 1))

    return measure


@pytest.mark.parametrize(("slope", "largest"), [(10.0, 90), (7.3, 123), (100.0, 9), (53.0, 16)])
def test_a_straight_line_takes_four_probes_at_most(slope: float, largest: int) -> None:
    tried: list[int] = []
    found = search(straight(100.0, slope, 1000.0, tried), Bounds(limit_bytes=1000, first=(4, 8)))
    assert found.largest is not None and found.next_up is not None
    assert (found.largest.batch, found.next_up.batch, found.settled) == (largest, largest + 1, True)
    assert len(tried) <= 4 and len(set(tried)) == len(tried)
    assert found.predicted_bytes == pytest.approx(100 + slope * largest, rel=0.02)


@pytest.mark.parametrize("bend", [-0.02, 0.05])
def test_a_line_that_misleads_is_mended(bend: float) -> None:
    def peak(batch: int) -> int:
        return int(100 + 10 * batch + bend * batch**2)

    def measure(batch: int) -> Probe:
        return Probe(batch, peak(batch) <= 1000, peak(batch))

    found = search(measure, Bounds(limit_bytes=1000, first=(4, 8), probes=20))
    assert found.largest is not None and found.settled
    assert peak(found.largest.batch) <= 1000 < peak(found.largest.batch + 1)
    assert len(found.probes) <= 12


def test_steps_are_whole_and_bounds_are_kept() -> None:
    tried: list[int] = []
    found = search(straight(0.0, 10.0, 1000.0, tried), Bounds(limit_bytes=1000, first=(4, 12), step=8))
    assert found.largest is not None and found.largest.batch == 100 and all(batch % 8 == 4 for batch in tried)
    found = search(straight(0.0, 10.0, 1000.0, []), Bounds(limit_bytes=1000, first=(4, 8), most=50))
    assert found.largest is not None and found.largest.batch == 50 and found.next_up is None and not found.settled
    found = search(straight(0.0, 10.0, 55.0, []), Bounds(limit_bytes=55, first=(4, 16)))
    assert found.largest is not None and (found.largest.batch, found.settled, found.line) == (5, True, None)
    found = search(straight(60.0, 10.0, 55.0, []), Bounds(limit_bytes=55, first=(4, 16)))
    assert found.largest is None and len(found.probes) == 1 and not found.settled
    found = search(lambda batch: Probe(batch, True, 7), Bounds(limit_bytes=55, first=(4, 16), most=99))
    assert found.largest is not None and found.largest.batch == 99  # memory that does not grow
