"""Which method prunes the vision tower while pre-training, and its settings.

B batch, P patches of the input, D width.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from pipeline.measure.flops import LayerTokens, vision_macs
from pipeline.models.vision import VisionTower
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.evit import EvitConfig
from pipeline.pruning.flip import FlipConfig
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.tome import TomeConfig


class Method(Protocol):
    """What a method's settings can do; all that the rest of the pipeline knows of it."""

    def check(self, depth: int, patches: int) -> None:
        """Raise UserError where the settings do not fit a tower."""
        ...

    def tokens_by_layer(self, depth: int, patches: int) -> list[LayerTokens]:
        """Tokens, CLS included, at each layer's attention and MLP."""
        ...

    def choosing_macs(self, tower: VisionTower) -> int:
        """Multiply-accumulates that finding the tokens costs by itself, without gradient."""
        ...

    def merging_macs(self, tower: VisionTower) -> int:
        """Multiply-accumulates of merging them, which a repeated selection costs too."""
        ...

    def begin(self, tower: VisionTower, sentence_BD: Tensor, seeds_B: Tensor) -> Pruning:
        """The intervention for a batch, from its sentence vectors and draw seeds."""
        ...


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """One method by name; only its own settings count.

    Attributes:
        method: ``elip`` is guided by the text, ``evit`` and ``tome`` by the picture alone, ``flip`` by chance;
            ``none`` prunes nothing.
        prune_momentum: Whether the momentum tower repeats the online tower's selection.
        elip: Settings of ELIP.
        evit: Settings of EViT.
        tome: Settings of ToMe.
        flip: Settings of FLIP.
    """

    method: Literal["elip", "evit", "tome", "flip", "none"] = "elip"
    prune_momentum: bool = False
    elip: ElipConfig = field(default_factory=ElipConfig)
    evit: EvitConfig = field(default_factory=EvitConfig)
    tome: TomeConfig = field(default_factory=TomeConfig)
    flip: FlipConfig = field(default_factory=FlipConfig)

    @property
    def chosen(self) -> Method | None:
        """Settings of the named method; None where nothing is pruned."""
        if self.method == "none" or (self.method == "elip" and self.elip.guidance == "none"):
            return None
        methods: dict[str, Method] = {"elip": self.elip, "evit": self.evit, "tome": self.tome, "flip": self.flip}
        return methods[self.method]

    @property
    def looks(self) -> bool:
        """Whether what goes depends on picture or text; what chance leaves out tells nothing about them."""
        return self.chosen is not None and self.method != "flip"

    def check(self, depth: int, patches: int) -> None:
        """Compare the named method with a tower.

        Raises:
            UserError: They do not fit.
        """
        if self.chosen is not None:
            self.chosen.check(depth, patches)

    def tokens_by_layer(self, depth: int, patches: int) -> list[LayerTokens]:
        """Tokens, CLS included, at each layer's attention and MLP."""
        if self.chosen is None:
            return [LayerTokens(1 + patches, 1 + patches)] * depth
        return self.chosen.tokens_by_layer(depth, patches)

    def macs(self, tower: VisionTower) -> int:
        """Multiply-accumulates of a pruned forward of the tower, choosing included: what methods are compared at."""
        return self.tower_macs(tower) + self.choosing_macs(tower)

    def tower_macs(self, tower: VisionTower) -> int:
        """Multiply-accumulates of the layers on the tokens that are left, and of merging."""
        layers = self.tokens_by_layer(tower.config.depth, tower.config.patches)
        return vision_macs(tower, layers) + (0 if self.chosen is None else self.chosen.merging_macs(tower))

    def choosing_macs(self, tower: VisionTower) -> int:
        """Multiply-accumulates of finding the tokens, which need no backward."""
        return 0 if self.chosen is None else self.chosen.choosing_macs(tower)

    def begin(self, tower: VisionTower, sentence_BD: Tensor, seeds_B: Tensor) -> Pruning | None:
        """The intervention for a batch of training; None where nothing is pruned."""
        return None if self.chosen is None else self.chosen.begin(tower, sentence_BD, seeds_B)
