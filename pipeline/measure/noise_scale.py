"""The gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162): which batch size is still worth its samples.

The mean gradient of a batch of B samples has the expected square |G|^2 + tr(Sigma) / B, Sigma being the covariance of
one sample's gradient. Two sizes of batch give both terms without bias (appendix A.1): the parts that the processes and
the accumulation make of an update, and the update itself. Each term is smoothed before the quotient is taken, as a
quotient of two noisy numbers is biased.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class NoiseScaleConfig:
    """How the noise scale is measured; a training in one part on one process has none.

    Attributes:
        every: Updates between measurements; 0 for none.
        smoothing: Weight of what was before in each measurement: 0.95 looks back over about 20 of them.
    """

    every: int = 10
    smoothing: float = 0.95

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"loop.noise_scale.every={self.every} must be at least 0 updates; 0 measures nothing")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"loop.noise_scale.smoothing={self.smoothing} must lie in [0, 1), 0.95 say")


@dataclass(frozen=True)
class Estimate:
    """Without bias; either may come out below 0.

    Attributes:
        signal: |G|^2, of the gradient of infinitely many samples.
        noise: tr(Sigma), of one sample.
    """

    signal: float
    noise: float

    @classmethod
    def of(cls, part_square: float, whole_square: float, part: float, whole: float) -> "Estimate":
        """From squared norms of gradients.

        Args:
            part_square: Mean over an update's parts of the squared norm of the part's mean gradient.
            whole_square: Squared norm of the update's mean gradient.
            part: Samples of a part.
            whole: Samples of the update.
        """
        signal = (whole * whole_square - part * part_square) / (whole - part)
        return cls(signal, (part_square - whole_square) / (1 / part - 1 / whole))


class NoiseScale:
    """The noise scale of a training so far.

    Args:
        config: How it is measured.
        batch: Samples of an update over all processes.
        parts: That they are cut into, over all processes and passes.
    """

    def __init__(self, config: NoiseScaleConfig, batch: int, parts: int) -> None:
        self.config = config
        self.batch = batch
        self.parts = parts
        self._count = 0
        self._signal = self._noise = 0.0
        self._least_updates = self._least_samples = 0.0

    def due(self, step: int) -> bool:
        """Whether the update after so many is to be measured."""
        return self.parts > 1 and self.config.every > 0 and step % self.config.every == 0

    def add(self, part_square: float, whole_square: float) -> None:
        """Take in one update; arguments as of `Estimate.of`."""
        found = Estimate.of(part_square, whole_square, self.batch / self.parts, self.batch)
        share = 1 - self.config.smoothing
        self._count += 1
        self._signal += share * (found.signal - self._signal)
        self._noise += share * (found.noise - self._noise)
        scale = self.scale
        if scale is not None:
            # An update of B samples does as much as 1 / (1 + scale / B) of one that follows G itself, and as much as
            # scale / (1 + scale / B) samples do that are taken one at a time (section 2.2).
            worth = 1 / (1 + scale / self.batch)
            self._least_updates += worth
            self._least_samples += worth * scale

    @property
    def scale(self) -> float | None:
        """tr(Sigma) / |G|^2 in samples; None where the signal has not come out of the noise."""
        return self._noise / self._signal if self._signal > 0 and self._noise > 0 else None

    def values(self) -> dict[str, float]:
        """For the log: both terms, the noise scale, and the critical batch that training so far implies.

        The critical batch is the fewest samples over the fewest updates that would have come as far (section 2.3): the
        noise scale's mean, in which an update counts as much as it did.
        """
        if not self._count:
            return {}
        begun = 1 - self.config.smoothing**self._count  # how much of the smoothed terms is not their beginning, 0
        values = {"gradient/signal": self._signal / begun, "gradient/noise": self._noise / begun}
        if self.scale is not None:
            values |= {"noise_scale": self.scale, "critical_batch": self._least_samples / self._least_updates}
        return values

    def state(self) -> dict[str, Any]:
        """All of it, JSON-able and exact, for a checkpoint."""
        terms = (self._signal, self._noise, self._least_updates, self._least_samples)
        return {"count": self._count, "terms": [term.hex() for term in terms]}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Takes what `state` gave; None for a checkpoint from before there was any."""
        if state is not None:
            self._count = int(state["count"])
            terms = map(float.fromhex, state["terms"])
            self._signal, self._noise, self._least_updates, self._least_samples = terms
