"""After training: all scores are shifted alike until the mean cost is the wanted one, if `Curriculum` left it off."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.trimming.trimmers import Trimmers

_FIRST = 0.125
_MOST = 16.0
_BETWEEN = 12


@dataclass(frozen=True)
class Calibration:
    """What was changed.

    Attributes:
        shift: Added to every score.
        before: Mean cost over the full cost, before; None where it was not measured.
        after: The same after.
    """

    shift: float
    before: float | None
    after: float | None


def calibrate(trimmers: Trimmers, measure: Callable[[], float], wanted: float, near: float = 0.005) -> Calibration:
    """Shifts the scores of a trained model so that its mean cost is the wanted one, or as near as it comes.

    Args:
        trimmers: Changed in place.
        measure: Mean cost over the full cost as the trimmers are now.
        wanted: The same, as it should be.
        near: Part of `wanted` that it may be off.
    """
    biases = {name: tensor.clone() for name, tensor in trimmers.state_dict().items() if name.endswith("bias")}
    tried: dict[float, float] = {}

    def put(shift: float) -> None:
        trimmers.load_state_dict(biases, strict=False)  # or rounding would add up
        trimmers.shift(shift)

    def cost(shift: float) -> float:
        if shift not in tried:
            put(shift)
            tried[shift] = measure()
        return tried[shift]

    for shift in _search(cost, wanted):
        if abs(cost(shift) - wanted) <= near * wanted:
            break
    best = min(tried, key=lambda shift: (abs(tried[shift] - wanted), abs(shift)))
    put(best)
    return Calibration(best, tried[0.0], tried[best])


def _search(cost: Callable[[float], float], wanted: float) -> Iterator[float]:
    """Shifts to try: none, then ever further until the wanted cost is passed, then between."""
    yield 0.0
    below = cost(0.0) < wanted
    inner, outer = 0.0, _FIRST if below else -_FIRST
    while abs(outer) <= _MOST:
        yield outer
        if (cost(outer) < wanted) != below:
            break
        inner, outer = outer, 2 * outer
    else:
        return  # out of reach
    for number in range(_BETWEEN):
        line = (wanted - cost(inner)) / (cost(outer) - cost(inner))
        # Where the cost falls steeply a line is of no use, and halving always is.
        middle = _between(inner, outer, 0.5 if number % 2 else line)
        yield middle
        inner, outer = (middle, outer) if (cost(middle) < wanted) == below else (inner, middle)


def _between(inner: float, outer: float, share: float) -> float:
    """Where a straight line meets the wanted cost, but away from the ends, as the cost is no straight line."""
    return inner + min(max(share, 0.1), 0.9) * (outer - inner)
