"""Scaling of the loss where gradients are 16-bit floats: as large a power of two as does not overflow."""

from collections.abc import Mapping
from typing import Any


class LossScale:
    """Halved at every overflow, doubled after `patience` updates without one.

    Args:
        scale: At first; 1 for ever where `dynamic` is false.
        dynamic: Whether it moves.
        patience: Updates.
    """

    def __init__(self, *, dynamic: bool, scale: float = 2.0**16, patience: int = 2000) -> None:
        self.dynamic = dynamic
        self.scale = scale if dynamic else 1.0
        self._patience = patience
        self._good = 0

    def update(self, overflow: bool) -> bool:
        """Takes in an update; returns whether an overflow is one that a smaller scale may mend."""
        if not self.dynamic:
            return False
        if overflow:
            self.scale, self._good = self.scale / 2, 0
            return self.scale >= 1
        self._good += 1
        if self._good == self._patience:
            self.scale, self._good = self.scale * 2, 0
        return False

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint; empty where it does not move."""
        return {"scale": self.scale, "good": self._good} if self.dynamic else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave; the state of another precision is left alone."""
        if self.dynamic and state:
            self.scale, self._good = float(state["scale"]), int(state["good"])
