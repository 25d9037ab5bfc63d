"""The largest batch within a memory limit, in few probes: memory as a line through two, then what it says is tried."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Probe:
    """One batch that was tried.

    Attributes:
        batch: Its size.
        fits: Whether it stayed within the limit.
        peak_bytes: The most that it took; of one that did not fit, how far it had come.
    """

    batch: int
    fits: bool
    peak_bytes: int


@dataclass(frozen=True)
class Line:
    """Memory of a batch: `fixed_bytes` and `sample_bytes` for each sample."""

    fixed_bytes: float
    sample_bytes: float

    @classmethod
    def through(cls, first: Probe, second: Probe) -> "Line":
        """The line through two probes of different size."""
        slope = (second.peak_bytes - first.peak_bytes) / (second.batch - first.batch)
        return cls(first.peak_bytes - slope * first.batch, slope)

    def bytes_of(self, batch: int) -> float:
        """Of a batch of this size."""
        return self.fixed_bytes + self.sample_bytes * batch

    def largest(self, limit_bytes: int, most: int) -> int:
        """The largest batch up to `most` that should fit."""
        if self.sample_bytes <= 0:
            return most
        return max(0, min(most, int((limit_bytes - self.fixed_bytes) / self.sample_bytes)))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of a search.

    Attributes:
        limit_bytes: That a batch must stay within.
        first: The two batches to begin with.
        step: Between batches that are told apart.
        most: No larger one is tried.
        probes: No more are made.
    """

    limit_bytes: int
    first: tuple[int, int]
    step: int = 1
    most: int = 4096
    probes: int = 10


@dataclass
class Search:
    """What was found.

    Attributes:
        bounds: Of the search.
        probes: By batch, in the order that they were made.
    """

    bounds: Bounds
    probes: dict[int, Probe] = field(default_factory=dict)

    @property
    def largest(self) -> Probe | None:
        """The largest that fits; None where none does."""
        fitting = [probe for probe in self.probes.values() if probe.fits]
        return max(fitting, key=lambda probe: probe.batch, default=None)

    @property
    def next_up(self) -> Probe | None:
        """The smallest above it that does not fit; None where that was not met."""
        too_large = [probe for probe in self.probes.values() if not probe.fits]
        return min(too_large, key=lambda probe: probe.batch, default=None)

    @property
    def settled(self) -> bool:
        """Whether the largest is known: one step more does not fit."""
        largest, above = self.largest, self.next_up
        return largest is not None and above is not None and above.batch - largest.batch <= self.bounds.step

    @property
    def line(self) -> Line | None:
        """Through the first two; what was found is held against it. None where they did not both fit."""
        first, second = (self.probes.get(batch) for batch in self.bounds.first)
        if first is None or second is None or not (first.fits and second.fits):
            return None
        return Line.through(first, second)

    @property
    def predicted_bytes(self) -> float | None:
        """What the line says of the largest."""
        return None if self.line is None or self.largest is None else self.line.bytes_of(self.largest.batch)


def search(measure: Callable[[int], Probe], bounds: Bounds) -> Search:
    """Looks for the largest batch that fits.

    Args:
        measure: Tries a batch.
        bounds: Of the search.
    """
    found = Search(bounds)
    for batch in bounds.first:
        found.probes[batch] = measure(batch)
        if not found.probes[batch].fits:
            break
    stride = bounds.step
    while (guess := _next(found, stride)) is not None:
        foretold = guess == _foretold(found)
        found.probes[guess] = measure(guess)
        # Beside the line's own guesses strides double, lest a line that misleads cost a probe for each step.
        stride = bounds.step if foretold else 2 * stride
    return found


def _next(found: Search, stride: int) -> int | None:
    """The batch to try next; None where the search is over."""
    bounds, low, high = found.bounds, found.largest, found.next_up
    if low is None or found.settled or len(found.probes) >= bounds.probes or low.batch >= bounds.most:
        return None
    guess = _foretold(found)
    if high is None:
        return min(bounds.most, max(guess, low.batch + stride))
    if low.batch < guess < high.batch:
        return guess
    if guess == low.batch:
        return low.batch + bounds.step
    below = high.batch - stride
    return below if below > low.batch else _between(low.batch, high.batch, bounds.step)


def _between(low: int, high: int, step: int) -> int:
    """The middle, in whole steps above `low`."""
    return low + max(1, (high - low) // step // 2) * step


def _foretold(found: Search) -> int:
    """What the line through the two largest that fit says, in whole steps above the largest."""
    fitting = sorted((probe for probe in found.probes.values() if probe.fits), key=lambda probe: probe.batch)
    bounds = found.bounds
    if len(fitting) < 2:  # there is no line, and something above that does not fit
        return (
            fitting[-1].batch
            if found.next_up is None
            else _between(fitting[-1].batch, found.next_up.batch, bounds.step)
        )
    guess = Line.through(fitting[-2], fitting[-1]).largest(bounds.limit_bytes, bounds.most)
    steps = (guess - fitting[-1].batch) // bounds.step
    return fitting[-1].batch + max(0, steps) * bounds.step
