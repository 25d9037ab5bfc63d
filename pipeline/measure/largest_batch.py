"""The largest batch that fits into memory, found in few probes: memory is close to a line in the batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_prep.errors import UserError

_PROBES = 16


@dataclass(frozen=True)
class LargestBatch:
    """What was found.

    Attributes:
        batch: Fits.
        peak: Its bytes.
        over: The smallest one tried that does not fit; one step more, unless the probes ran out before.
        probes: How many were made.
    """

    batch: int
    peak: int
    over: int | None
    probes: int


def largest_batch(probe: Callable[[int], int | None], limit: int, first: int, step: int) -> LargestBatch:
    """Look for the largest multiple of `step` whose memory stays within the limit.

    The first two probes give a line; the others are where it, or that of the last two, meets the limit, until what fits
    and what does not are neighbours.

    Args:
        probe: Bytes that a batch takes at its peak; None where it found no room.
        limit: Bytes that it may take.
        first: Tried first; a multiple of `step`.
        step: Between batches that are told apart.

    Raises:
        UserError: Not even `step` fits.
    """
    fits: dict[int, int] = {}
    over: list[int] = []
    guess = first
    while len(fits) + len(over) < _PROBES:
        peak = probe(guess)
        if peak is None or peak > limit:
            over.append(guess)
        else:
            fits[guess] = peak
        low, high = max(fits, default=0), over[-1] if over else None
        if high is not None and high - low <= step:
            break
        guess = max(int(_next(fits, limit, over, step)) // step * step, low + step)
        guess = guess if high is None else min(guess, high - step)
    if not fits:
        raise UserError(f"a batch of {step} does not fit into {limit / 2**30:.2f} GiB; give more memory")
    batch = max(fits)
    return LargestBatch(batch, fits[batch], over[-1] if over else None, len(fits) + len(over))


def _next(fits: Mapping[int, int], limit: int, over: Sequence[int], step: int) -> float:
    """Where the line meets the limit; once that has been refuted a step below, and then half way.

    Args:
        fits: Bytes of the batches that fit.
        limit: Bytes.
        over: Batches that do not, falling.
        step: Between batches.
    """
    ends = sorted(fits)[-2:]
    if len(ends) == 2 and (slope := (fits[ends[1]] - fits[ends[0]]) / (ends[1] - ends[0])) > 0:
        met = ends[1] + (limit - fits[ends[1]]) / slope
        if not over or met < over[-1]:
            return met
        if len(over) == 1:
            return over[-1] - step
    return (max(fits, default=0) + over[-1]) / 2 if over else 2 * ends[-1]
