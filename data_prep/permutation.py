"""A seeded order of any number of positions as arithmetic: nothing is kept, whatever the number."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
# The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """A permutation of range(size): a Feistel network over the next even number of bits, walked back into range.

    Attributes:
        size: How many positions there are.
        seed: Any text; the same text gives the same order, on every machine and with every numpy.
    """

    size: int
    seed: str

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions that stand at the places start to stop - 1: int64 (stop - start,)."""
        out = self._mixed(np.arange(start, stop, dtype=np.uint64))
        # At most three quarters of the network's domain lie outside, so this ends after a few rounds.
        while (outside := out >= self.size).any():
            out[outside] = self._mixed(out[outside])
        return out.astype(np.int64)

    @cached_property
    def _half(self) -> int:
        """Bits of half a block."""
        return max(1, -(-(self.size - 1).bit_length() // 2))

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        return np.frombuffer(hashlib.sha512(self.seed.encode()).digest(), dtype="<u8")[:_ROUNDS]

    def _mixed(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        half, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = places >> half, places & mask
        for key in self._keys:
            left, right = right, left ^ (_hash(right ^ key) & mask)
        return (left << half) | right


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
