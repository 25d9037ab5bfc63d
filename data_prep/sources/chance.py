"""Seeded choices that never change."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def shuffled(things: Sequence[T], seed: str) -> list[T]:
    """The things in an order that follows from the seed alone, on every Python."""
    random_number = random.Random(seed).random
    return [thing for _, _, thing in sorted((random_number(), i, thing) for i, thing in enumerate(things))]
