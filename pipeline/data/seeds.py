"""Random draws as pure functions of what they belong to (seed, epoch, sample), never of a running state.

Keys are hashed with BLAKE2 into a Philox counter generator, so a draw is the same in every process, for every
number of workers and after every restart.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def _digest(parts: tuple[int | str, ...], size: int) -> int:
    # repr of a tuple of plain ints and strings is unambiguous: ("a", 1) and ("a1",) differ.
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    return int.from_bytes(blake2b(repr(plain).encode(), digest_size=size).digest(), "little")


def draw(count: int, *parts: int | str) -> int:
    """One whole number in [0, count), the same for the same parts."""
    return _digest(parts, 8) % count


def generator(*parts: int | str) -> np.random.Generator:
    """A generator that belongs to the given parts."""
    return np.random.Generator(np.random.Philox(key=_digest(parts, 16)))


def permutation(count: int, *parts: int | str) -> NDArray[np.int64]:
    """A permutation of range(count), shape (count,).

    Sorting raw bits rather than `Generator.permutation`: NumPy keeps the raw bits of a bit generator the same
    for ever, but not what a Generator makes of them, and the order of a run must survive an upgrade.
    """
    bits = np.random.Philox(key=_digest(parts, 16)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)
