"""The pruning of pre-training, where a backbone keeps it while it is fine-tuned and used: ELIP before the trimmers.

At the beginning of a stage the sentence says which of the tokens that are still there go; trimmers then look at what is
left. The pruning is the model's, so that a speed-up counts from the pruned model.

B batch.
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Step, TokenStream
from pipeline.pruning.elip import ElipConfig, TextGuidedPruning


class KeptPruning:
    """ELIP of one backbone, with what it leaves and costs.

    Args:
        backbone: Whose vision tower is pruned.
        elip: As in pre-training.

    Raises:
        UserError: Its stages do not fit the tower.
    """

    def __init__(self, backbone: Backbone, elip: ElipConfig) -> None:
        vision = backbone.config.vision
        elip.check(vision.depth, vision.patches)
        self.backbone, self.elip = backbone, elip
        self._layers = elip.tokens_by_layer(vision.depth, vision.patches)
        self._stage_macs = cache(self._macs_of_stage)

    def begin(self, text: TokenStream) -> TextGuidedPruning:
        """The intervention for a batch.

        Args:
            text: Encoded, padded or packed.
        """
        tower = self.backbone.visual_encoder
        return TextGuidedPruning(self.elip, tower.steps, tower.config.patches, self.backbone.sentence(text))

    def left(self, step: Step) -> int:
        """Image tokens beside CLS that are left at a step where nothing is trimmed."""
        layer = step.layer if step.part == "vision" else len(self._layers) - 1
        return self._layers[layer].attention - 1

    def macs(self, leaving: Mapping[int, Tensor]) -> Tensor:
        """(B,) multiply-accumulates of choosing and merging.

        Args:
            leaving: (B,) tokens with CLS that leave each vision layer; those of a mean need not be whole.
        """
        keeps = dict(zip(self.elip.begins, self.elip.keeps(self.backbone.config.vision.patches), strict=True))
        total = torch.zeros_like(leaving[0])
        for begin, keep in keeps.items():
            entering_B = leaving[begin - 1]
            each = [self._stage_macs(begin, round(n)) if n - 1 > keep else 0 for n in entering_B.tolist()]
            total = total + entering_B.new_tensor(each)
        return total

    def _macs_of_stage(self, begin: int, tokens: int) -> int:
        tower = self.backbone.visual_encoder
        return self.elip.choosing_at(tower, begin, tokens) + self.elip.merging_at(tower, tokens)
