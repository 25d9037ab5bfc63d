"""How hard SmartTrim trims as training goes on, and how it reaches the wanted cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.limits import a_share, at_least

_MOST = 16.0
_FARTHEST = 0.25  # that the share asked for may be from the one that was solved for

# What is asked for follows the cost so many times slower than the shifts follow it.
_SLOWER = 5.0

_MOVED, _SHIFT = "curriculum.moved", "curriculum.shift."


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The fall of the kept shares.

    Attributes:
        share: Part of training over which they fall linearly from 1 to what the target needs; then they stay.
        gain: How strongly the scores of a group that keeps more than it is asked to are shifted, from the beginning on:
            log-odds an update, for a share that is off by all. What is asked follows the cost by a fifth of it. With 0
            neither moves.
    """

    share: float = 0.4
    gain: float = 0.1

    def __post_init__(self) -> None:
        a_share(self, "curriculum", "share")
        at_least(self, "curriculum", 0, "gain")


class Curriculum:
    """The kept share γ to ask for now, and the price of keeping more.

    The cost loss asks each group for a share; the task asks back, most of all where the tokens of pictures are worth
    more than that. So the scores of a group that keeps more than its share are shifted down: a score is the log of the
    odds that its unit stays, and the shift is the price of keeping in the same measure (a Lagrange multiplier of an
    inequality, hence never a reward). Each group has its own: with one for all, the groups that do as they are asked
    pay for the one that does not, and cheap words went where patches would not. Were the shifts to begin only when the
    shares have fallen, they would come at once, and be larger than tokens' scores lie apart.

    The share that the cost model solved for is that of layers which keep alike. What trained layers keep costs more or
    less, so the share that is asked of all is moved, slowly, until the cost is the wanted one: the loss and the shifts
    ask for the same then. Were the shifts to follow the cost while the loss asks for the share, the two would pull
    against each other to the end, and spoil the scores.

    Args:
        config: The fall.
        share: γ that the target needs, if all layers keep alike.
        groups: Whose scores are shifted.
        target: Wanted cost over the full cost.
    """

    def __init__(self, config: CurriculumConfig, share: float, groups: Sequence[str], target: float) -> None:
        self.config = config
        self.share = share
        self.target = target
        self.shifts = dict.fromkeys(groups, 0.0)
        self.moved = 0.0

    def wanted(self, progress: float) -> float:
        """γ at a share of training, of what keeps as much as it is told."""
        return 1.0 + (self.share - 1.0) * self._fallen(progress)

    def asked(self, progress: float) -> float:
        """γ at a share of training, of what learns how much to keep."""
        return min(1.0, max(0.0, self.wanted(progress) + self.moved))

    def observe(self, progress: float, kept: Mapping[str, float], cost: float) -> None:
        """Moves the shifts and what is asked.

        Args:
            progress: Share of training.
            kept: Share of its units that each group kept in the last batch; groups that nobody scores are passed over.
            cost: Of the last batch over the full cost.
        """
        asked = self.asked(progress)
        for group in self.shifts.keys() & kept.keys():
            shift = self.shifts[group] + self.config.gain * (asked - kept[group])
            self.shifts[group] = min(0.0, max(-_MOST, shift))
        if self._fallen(progress) == 1:
            moved = self.moved + self.config.gain / _SLOWER * (self.target - cost)
            self.moved = min(_FARTHEST, max(-_FARTHEST, moved))

    def tensors(self) -> dict[str, Tensor]:
        """Its state, in float64."""
        held = {_MOVED: self.moved, **{_SHIFT + group: shift for group, shift in self.shifts.items()}}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in held.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `tensors`."""
        self.moved = float(tensors[_MOVED])
        self.shifts = {group: float(tensors[_SHIFT + group]) for group in self.shifts}

    def _fallen(self, progress: float) -> float:
        return min(1.0, progress / self.config.share) if self.config.share else 1.0
