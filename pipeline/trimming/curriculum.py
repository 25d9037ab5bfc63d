"""How hard SmartTrim trims as training goes on, and how it reaches the wanted cost."""

from dataclasses import dataclass

from pipeline.limits import a_share


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The fall of the kept shares.

    Attributes:
        share: Part of training over which they fall linearly from 1 to what the target needs; then they stay.
        gain: How strongly the wanted cost follows what was measured (0: not at all).
    """

    share: float = 0.4
    gain: float = 0.05

    def __post_init__(self) -> None:
        a_share(self, "curriculum", "share", "gain")


class Curriculum:
    """The kept share γ to ask for now.

    The share that the cost model solves for assumes every layer keeps alike; layers are free to differ, so the
    asked share is corrected by what was measured.

    Args:
        config: The fall.
        share: γ that the target needs, if all layers keep alike.
    """

    def __init__(self, config: CurriculumConfig, share: float) -> None:
        self.config = config
        self.share = share
        self.correction = 0.0

    def wanted(self, progress: float) -> float:
        """γ at a share of training."""
        fall = min(1.0, progress / self.config.share) if self.config.share else 1.0
        end = min(1.0, max(0.0, self.share + self.correction))
        return 1.0 + (end - 1.0) * fall

    def observe(self, progress: float, measured: float, target: float) -> None:
        """Correct γ once the fall is over.

        Args:
            progress: Share of training.
            measured: Cost of the last batch over the full cost.
            target: Wanted cost over the full cost.
        """
        if progress >= self.config.share:
            self.correction += self.config.gain * (target - measured)
            self.correction = min(0.3, max(-0.3, self.correction))
