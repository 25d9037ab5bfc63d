"""How hard SmartTrim trims as training goes on, and how it reaches the wanted cost."""

from dataclasses import dataclass

from pipeline.limits import a_share, at_least

_MOST = 16.0


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The fall of the kept shares.

    Attributes:
        share: Part of training over which they fall linearly from 1 to what the target needs; then they stay.
        gain: How strongly all scores follow the measured cost, from the beginning on: log-odds an update, for a cost
            that is all of the full model's off (0: not at all).
    """

    share: float = 0.4
    gain: float = 0.3

    def __post_init__(self) -> None:
        a_share(self, "curriculum", "share")
        at_least(self, "curriculum", 0, "gain")


class Curriculum:
    """The kept share γ to ask for now, and the price of keeping.

    The cost loss asks each group for the share that the cost model solved for; the task asks back, and the sum of both
    misses the target, most of all where the tokens of pictures are worth more than that. So all scores are shifted
    alike until the measured cost is the target's, which falls with the shares: a score is the log of the odds that its
    unit stays, and the shift is the price of cost in the same measure (a Lagrange multiplier that is moved by what is
    left over). Asking for other shares instead would have the groups that do as they are asked pay for the one that
    does not. Were the shift to begin only when the shares have fallen, it would come at once, and be larger than
    tokens' scores lie apart.

    Args:
        config: The fall.
        share: γ that the target needs, if all layers keep alike.
    """

    def __init__(self, config: CurriculumConfig, share: float) -> None:
        self.config = config
        self.share = share
        self.shift = 0.0

    def wanted(self, progress: float) -> float:
        """γ at a share of training."""
        return 1.0 + (self.share - 1.0) * self._fallen(progress)

    def observe(self, progress: float, measured: float, target: float) -> None:
        """Moves the shift.

        Args:
            progress: Share of training.
            measured: Cost of the last batch over the full cost.
            target: Wanted cost over the full cost, once the fall is over.
        """
        wanted = 1.0 + (target - 1.0) * self._fallen(progress)
        self.shift = min(_MOST, max(-_MOST, self.shift + self.config.gain * (wanted - measured)))

    def _fallen(self, progress: float) -> float:
        return min(1.0, progress / self.config.share) if self.config.share else 1.0
