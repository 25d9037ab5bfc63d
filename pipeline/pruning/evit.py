"""EViT (arXiv 2202.07800): the class token's own attention decides which tokens stay; no text is asked.

B batch, n tokens beside CLS, P patches of the input, D width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from data_prep.errors import UserError
from pipeline.measure.flops import LayerTokens
from pipeline.models.attention import Asked, cls_row
from pipeline.models.schedule import TokenStream
from pipeline.models.vision import VisionTower
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.selection import Selection, select_attentive


@dataclass(frozen=True, kw_only=True)
class EvitConfig:
    """Where tokens go, and how many.

    Attributes:
        keep: Share of the tokens then present that each of the layers keeps; rounded up, as the authors do.
        layers: Layers, from 0, between whose attention and MLP tokens go; rising.
        fuse: Whether tokens that go are fused into one, weighted by their attention.
    """

    keep: float = 0.7
    layers: tuple[int, ...] = (3, 6, 9)
    fuse: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise UserError(
                f"evit.keep={self.keep} must lie between 0 and 1; to prune nothing set pruning.method to none"
            )
        if not self.layers or min(self.layers) < 0 or list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"evit.layers={list(self.layers)} must name layers from 0 on, rising, such as [3, 6, 9]")

    def keeps(self, patches: int) -> list[int]:
        """Tokens kept beside CLS by each of the layers."""
        kept, present = [], patches
        for _ in self.layers:
            kept.append(math.ceil(self.keep * present))
            present = kept[-1] + self.fuse
        return kept

    def check(self, depth: int, patches: int) -> None:
        """Compare with a tower.

        Raises:
            UserError: A layer is not there, or would drop nothing.
        """
        if self.layers[-1] >= depth:
            raise UserError(
                f"evit.layers={list(self.layers)} names layer {self.layers[-1]}, the vision tower's {depth} layers "
                f"are 0 to {depth - 1}; leave it out"
            )
        present = patches
        for layer, kept in zip(self.layers, self.keeps(patches), strict=True):
            if not kept < present:
                raise UserError(
                    f"evit.keep={self.keep} keeps all {present} tokens at layer {layer}; make it smaller or leave "
                    "the layer out of evit.layers"
                )
            present = kept + self.fuse

    def tokens_by_layer(self, depth: int, patches: int) -> list[LayerTokens]:
        """Tokens, CLS included, at each layer's attention and MLP."""
        kept = dict(zip(self.layers, self.keeps(patches), strict=True))
        counts, present = [], 1 + patches
        for layer in range(depth):
            entering, present = present, 1 + kept[layer] + self.fuse if layer in kept else present
            counts.append(LayerTokens(entering, present))
        return counts

    def choosing_macs(self, tower: VisionTower) -> int:
        """MACs of the CLS row."""
        return attentive_macs(self._acting(tower), tower.config.width, fuse=False)

    def merging_macs(self, tower: VisionTower) -> int:
        """MACs of the fused token."""
        return attentive_macs(self._acting(tower), tower.config.width, self.fuse) - self.choosing_macs(tower)

    def _acting(self, tower: VisionTower) -> list[int]:
        """Tokens that attend in the layers."""
        layers = self.tokens_by_layer(tower.config.depth, tower.config.patches)
        return [layers[layer].attention for layer in self.layers]

    def begin(self, tower: VisionTower, sentence_BD: Tensor, seeds_B: Tensor) -> Pruning:
        """The intervention for a batch; neither its texts nor its seeds are looked at."""
        return AttentivePruning(dict(zip(self.layers, self.keeps(tower.config.patches), strict=True)), self.fuse)


def attentive_macs(tokens: Sequence[int], width: int, fuse: bool) -> int:
    """MACs of the CLS rows of layers with so many tokens, and of the sums of those that are fused."""
    return sum(n * width + fuse * (n - 1) * width for n in tokens)


class AttentivePruning(Pruning):
    """EViT's intervention for one batch.

    Args:
        keeps: Tokens beside CLS that each layer keeps.
        fuse: Whether the others are fused into one.
    """

    def __init__(self, keeps: Mapping[int, int], fuse: bool) -> None:
        super().__init__(keeps, between=True)
        self.fuse = fuse
        self.keeps = keeps

    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Selection:
        """Keep what CLS has just attended to most."""
        assert asked is not None
        return select_attentive(cls_row(asked)[:, 1:], self.keeps[layer], self.fuse)
