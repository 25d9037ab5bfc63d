"""FLIP (arXiv 2212.00794): in training a random share of the patches never enters the tower.

Evaluation prunes with no method unless it asks for one, so there all patches are seen, as FLIP wants it.

B batch, P patches of the input, K kept patches.
"""

from dataclasses import dataclass

from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.seeds import uniforms
from pipeline.measure.flops import LayerTokens
from pipeline.models.attention import Asked
from pipeline.models.schedule import TokenStream
from pipeline.models.vision import VisionTower
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.selection import Selection, select

# Masked words are drawn from the same seeds; without this, patch j would go whenever a certain word is masked.
_PATCHES = 0x70617463686573


@dataclass(frozen=True, kw_only=True)
class FlipConfig:
    """How much goes.

    Attributes:
        drop: Share of the patches that are dropped.
    """

    drop: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1:
            raise UserError(
                f"flip.drop={self.drop} must lie between 0 and 1; to drop nothing set pruning.method to none"
            )

    def keep(self, patches: int) -> int:
        """K."""
        return round(patches * (1 - self.drop))

    def check(self, depth: int, patches: int) -> None:
        """Compare with a tower.

        Raises:
            UserError: Nothing would be kept, or nothing dropped.
        """
        if not 0 < self.keep(patches) < patches:
            raise UserError(
                f"flip.drop={self.drop} keeps {self.keep(patches)} of {patches} patches: at least one must stay and "
                f"one go; it must be between {0.5 / patches:.3g} and {1 - 0.5 / patches:.3g}"
            )

    def tokens_by_layer(self, depth: int, patches: int) -> list[LayerTokens]:
        """Tokens, CLS included, at each layer's attention and MLP."""
        return [LayerTokens(1 + self.keep(patches), 1 + self.keep(patches))] * depth

    def choosing_macs(self, tower: VisionTower) -> int:
        """Random numbers need no products."""
        return 0

    def merging_macs(self, tower: VisionTower) -> int:
        """Nothing is merged."""
        return 0

    def begin(self, tower: VisionTower, sentence_BD: Tensor, seeds_B: Tensor) -> Pruning:
        """The intervention for a batch, by its seeds alone."""
        return RandomDropping(select_random(seeds_B, tower.config.patches, self.keep(tower.config.patches)))


def select_random(seeds_B: Tensor, patches: int, keep: int) -> Selection:
    """Keep patches at random, the same ones for the same seed wherever in whichever batch it stands."""
    return select(uniforms(seeds_B ^ _PATCHES, patches), keep, merge=False)


class RandomDropping(Pruning):
    """FLIP's intervention for one batch.

    Args:
        kept: What stays.
    """

    def __init__(self, kept: Selection) -> None:
        super().__init__([0], between=False)
        self.kept = kept

    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Selection:
        """What was drawn."""
        return self.kept
