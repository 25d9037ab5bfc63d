"""ToMe (arXiv 2210.09461): every layer merges the pairs of tokens whose keys are most alike; no text is asked.

N tokens with CLS, P patches of the input, D width, H heads, d = D / H.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from data_prep.errors import UserError
from pipeline.limits import at_least
from pipeline.measure.flops import LayerTokens
from pipeline.models.attention import Asked
from pipeline.models.schedule import TokenStream
from pipeline.models.vision import VisionTower
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.matching import Matching, match


@dataclass(frozen=True, kw_only=True)
class TomeConfig:
    """How many tokens go.

    Attributes:
        merged_per_layer: The paper's r: tokens that each layer merges into others; a layer merges at most half of
            what is left, so deep ones may merge fewer.
    """

    merged_per_layer: int = 8

    def __post_init__(self) -> None:
        at_least(self, "tome", 1, "merged_per_layer")

    def merged(self, depth: int, patches: int) -> list[int]:
        """Tokens that each layer merges."""
        counts, present = [], patches
        for _ in range(depth):
            counts.append(min(self.merged_per_layer, present // 2))
            present -= counts[-1]
        return counts

    def check(self, depth: int, patches: int) -> None:
        """Compare with a tower.

        Raises:
            UserError: Not even the first layer could merge so many.
        """
        if self.merged_per_layer > patches // 2:
            raise UserError(
                f"tome.merged_per_layer={self.merged_per_layer} is more than half of {patches} patches, and a layer "
                f"merges pairs; it must be at most {patches // 2}"
            )

    def tokens_by_layer(self, depth: int, patches: int) -> list[LayerTokens]:
        """Tokens, CLS included, at each layer's attention and MLP."""
        counts, present = [], 1 + patches
        for merged in self.merged(depth, patches):
            counts.append(LayerTokens(present, present - merged))
            present -= merged
        return counts

    def choosing_macs(self, tower: VisionTower) -> int:
        """MACs of similarities (even x odd x d)."""
        layers = self.tokens_by_layer(tower.config.depth, tower.config.patches)
        return similarity_macs(layers, tower.config.width // tower.config.heads)

    def merging_macs(self, tower: VisionTower) -> int:
        """MACs of adding merged tokens to their partners (odd x r x D), and of their sizes."""
        layers = self.tokens_by_layer(tower.config.depth, tower.config.patches)
        return matching_macs(layers, tower.config.width, tower.config.heads) - self.choosing_macs(tower)

    def begin(self, tower: VisionTower, sentence_BD: Tensor, seeds_B: Tensor) -> Pruning:
        """The intervention for a batch; neither its texts nor its seeds are looked at."""
        return TokenMerging(self.merged(tower.config.depth, tower.config.patches))


def similarity_macs(layers: Sequence[LayerTokens], head: int) -> int:
    """MACs of comparing the even with the odd tokens, in layers where anything is merged."""
    return sum((n.attention // 2) * ((n.attention + 1) // 2) * head for n in layers if n.attention > n.mlp)


def matching_macs(layers: Sequence[LayerTokens], width: int, heads: int) -> int:
    """MACs of comparing and merging."""
    merging = sum((n.attention // 2) * (n.attention - n.mlp) * (width + 1) for n in layers)
    return similarity_macs(layers, width // heads) + merging


class TokenMerging(Pruning):
    """ToMe's intervention for one batch.

    Args:
        merged: Tokens that each layer of the tower merges.
    """

    def __init__(self, merged: Sequence[int]) -> None:
        super().__init__([layer for layer, count in enumerate(merged) if count], between=True)
        self.merged = merged

    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Matching:
        """Merge those whose keys, averaged over heads, are most alike."""
        assert asked is not None
        return match(asked.keys.k.unflatten(-1, (asked.heads, -1)).mean(-2), self.merged[layer])
