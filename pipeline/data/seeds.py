"""Random draws as pure functions of what they belong to (seed, epoch, sample), never of a running state.

Keys are hashed with BLAKE2 into a Philox counter generator, so a draw is the same in every process, for every
number of workers and after every restart. `uniforms` does the same for tensors, on any device.
"""

from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014), as the signed numbers that torch's 64 bits hold.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _digest(parts: tuple[int | str, ...], size: int) -> int:
    # repr of a tuple of plain ints and strings is unambiguous: ("a", 1) and ("a1",) differ.
    plain = [part if type(part) is int or isinstance(part, str) else int(part) for part in parts]
    return int.from_bytes(blake2b(repr(tuple(plain)).encode(), digest_size=size).digest(), "little")


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


def uniforms(seeds_B: Tensor, count: int) -> Tensor:
    """Uniform numbers that belong to the rows' seeds, wherever in whichever batch a row stands.

    Args:
        seeds_B: (B,) int64, any bits.
        count: How many for each; more of them begin with the fewer.

    Returns:
        (B, count) float64 in [0, 1), on the device of the seeds.
    """
    x_BC = seeds_B[:, None] + _GAMMA * torch.arange(1, count + 1, device=seeds_B.device)
    x_BC = (x_BC ^ _shifted(x_BC, 30)) * _MIX_1
    x_BC = (x_BC ^ _shifted(x_BC, 27)) * _MIX_2
    return _shifted(x_BC ^ _shifted(x_BC, 31), 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifts the 64 bits to the right as if they had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
