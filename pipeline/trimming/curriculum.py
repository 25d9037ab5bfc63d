"""How hard SmartTrim trims as training goes on, and how it reaches the wanted cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.limits import a_share, at_least

_MOST = 16.0

# What of the cost is off counts so many times as much as what of a kept share is: a group that keeps what it is asked
# to may cost more than the target allows, for what its layers keep is not alike.
_PRICE = 3.0


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The fall of the kept shares.

    Attributes:
        share: Part of training over which they fall linearly from 1 to what the target needs; then they stay.
        gain: How strongly the scores of each group follow what it keeps and what all of it costs, from the beginning
            on: log-odds an update, for a share that is off by all (0: not at all).
    """

    share: float = 0.4
    gain: float = 0.1

    def __post_init__(self) -> None:
        a_share(self, "curriculum", "share")
        at_least(self, "curriculum", 0, "gain")


class Curriculum:
    """The kept share γ to ask for now, and the price of keeping.

    The cost loss asks each group for the share that the cost model solved for; the task asks back, and the sum of both
    misses the target, most of all where the tokens of pictures are worth more than that. So the scores of each group
    are shifted until it keeps its share and all cost what they should: a score is the log of the odds that its unit
    stays, and the shift is the price of keeping in the same measure (a Lagrange multiplier that is moved by what is
    left over). Each group has a shift of its own: with one for all, the groups that do as they are asked pay for the
    one that does not, and cheap words went where patches would not. Were the shifts to begin only when the shares have
    fallen, they would come at once, and be larger than tokens' scores lie apart.

    Args:
        config: The fall.
        share: γ that the target needs, if all layers keep alike.
        groups: Whose scores are shifted.
        cost_at: Cost over the full cost where all layers keep a share.
    """

    def __init__(
        self, config: CurriculumConfig, share: float, groups: Sequence[str], cost_at: Callable[[float], float]
    ) -> None:
        self.config = config
        self.share = share
        self.shifts = dict.fromkeys(groups, 0.0)
        self._cost_at = cost_at

    def wanted(self, progress: float) -> float:
        """γ at a share of training."""
        fallen = min(1.0, progress / self.config.share) if self.config.share else 1.0
        return 1.0 + (self.share - 1.0) * fallen

    def observe(self, progress: float, kept: Mapping[str, float], cost: float) -> None:
        """Moves the shifts.

        Args:
            progress: Share of training.
            kept: Share of its units that each group kept in the last batch; groups that nobody scores are passed over.
            cost: Of the last batch over the full cost.
        """
        wanted = self.wanted(progress)
        dear = _PRICE * (self._cost_at(wanted) - cost)
        for group in self.shifts.keys() & kept.keys():
            moved = self.shifts[group] + self.config.gain * (wanted - kept[group] + dear)
            self.shifts[group] = min(_MOST, max(-_MOST, moved))
