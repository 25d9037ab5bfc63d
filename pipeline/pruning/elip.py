"""ELIP (arXiv 2309.16738): before a stage of the vision tower the sentence decides which tokens stay.

B batch, N tokens with CLS, n = N - 1, P patches of the input, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.limits import a_share
from pipeline.measure.flops import LayerTokens, layer_macs
from pipeline.models.attention import Asked
from pipeline.models.blocks import PreNormBlock
from pipeline.models.schedule import Step, TokenStream, execute
from pipeline.models.vision import VisionTower
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.selection import Selection, select


@dataclass(frozen=True, kw_only=True)
class ElipConfig:
    """Where tokens go and how the text guides it.

    Attributes:
        guidance: ``stage`` runs a copy with the blended CLS through the coming stage (the paper's arithmetic);
            ``query`` lets the blended CLS ask with the stage's first layer only; ``none`` prunes nothing.
        depths: Layers of each stage; they add up to the tower's depth. The first stage sees all tokens.
        ratios: Kept share of the original patches, for each stage but the first; falling.
        sentence: Whose sentence guides: ``own``, each image's caption (the paper's); ``masked``, the caption with words
            masked (ALBEF: the word task then sees no token that a hidden word has chosen); ``other``, another image's
            caption (nothing of the own one is told).
        vision_weight: λ, the share of the vision CLS in the blend with the sentence vector.
        merge: Whether tokens that go are merged into one.
        count_base: Whether ratios count ``patches`` (P) or ``tokens`` (P + 1, CLIP's variant).
    """

    guidance: Literal["stage", "query", "none"] = "query"
    depths: tuple[int, ...] = (2, 2, 6, 2)
    ratios: tuple[float, ...] = (0.90, 0.65, 0.40)
    sentence: Literal["own", "masked", "other"] = "own"
    vision_weight: float = 0.8
    merge: bool = True
    count_base: Literal["patches", "tokens"] = "patches"

    def __post_init__(self) -> None:
        if len(self.depths) < 2 or min(self.depths) < 1:
            raise UserError(
                f"elip.depths={list(self.depths)} must hold two stages or more of at least one layer each, such as "
                "[2, 2, 6, 2]; to prune nothing set elip.guidance to none"
            )
        if len(self.ratios) != len(self.depths) - 1:
            raise UserError(
                f"elip.ratios={list(self.ratios)} must hold one ratio for each of elip.depths={list(self.depths)} "
                f"but the first: {len(self.depths) - 1}"
            )
        # Asked so that NaN does not pass.
        if not all(0 < b < a for a, b in zip((1.0, *self.ratios), self.ratios, strict=False)):
            raise UserError(
                f"elip.ratios={list(self.ratios)} must lie in (0, 1) and fall from stage to stage, "
                "such as [0.90, 0.65, 0.40]"
            )
        a_share(self, "elip", "vision_weight")

    @property
    def begins(self) -> list[int]:
        """First layer of each stage but the first, from 0."""
        return [sum(self.depths[: s + 1]) for s in range(len(self.depths) - 1)]

    def keeps(self, patches: int) -> list[int]:
        """Tokens kept by each stage but the first; the product is truncated, as in the reference."""
        base = patches + (self.count_base == "tokens")
        return [int(base * ratio) for ratio in self.ratios]

    def check(self, depth: int, patches: int) -> None:
        """Compare with a tower.

        Raises:
            UserError: The stages do not add up to the depth, or a stage would keep nothing or everything.
        """
        if self.guidance == "none":
            return
        if sum(self.depths) != depth:
            raise UserError(
                f"elip.depths={list(self.depths)} add up to {sum(self.depths)}, the vision tower has {depth} layers; "
                "make them equal"
            )
        present = patches
        for ratio, keep in zip(self.ratios, self.keeps(patches), strict=True):
            if not 0 < keep < present:
                raise UserError(
                    f"elip ratio {ratio} keeps {keep} of {present} tokens ({patches} patches): each stage must "
                    "keep at least one and drop at least one; change elip.ratios or the image size"
                )
            present = keep + self.merge

    def tokens_by_layer(self, depth: int, patches: int) -> list[LayerTokens]:
        """Tokens, CLS included, at each layer's attention and MLP: a stage's layers are all alike."""
        present = [1 + patches, *(1 + keep + self.merge for keep in self.keeps(patches))]
        return [LayerTokens(n, n) for n, layers in zip(present, self.depths, strict=True) for _ in range(layers)]

    def choosing_macs(self, tower: VisionTower) -> int:
        """MACs of guidance: a folded query and scores; ``stage`` runs layers besides."""
        layers = self.tokens_by_layer(tower.config.depth, tower.config.patches)
        return sum(self.choosing_at(tower, begin, layers[begin - 1].mlp) for begin in self.begins)

    def choosing_at(self, tower: VisionTower, begin: int, tokens: int) -> int:
        """The same of one stage.

        Args:
            tower: The vision tower.
            begin: First layer of the stage.
            tokens: That enter it, with CLS.
        """
        width, steps = tower.config.width, tower.steps
        total = 2 * width**2 + tokens * width * tower.config.heads
        if self.guidance == "query":
            return total
        end = next((later for later in self.begins if later > begin), len(steps))
        return total + layer_macs(steps[begin : end - 1], [LayerTokens(tokens, tokens)] * (end - 1 - begin))

    def merging_macs(self, tower: VisionTower) -> int:
        """MACs of the merged tokens."""
        layers = self.tokens_by_layer(tower.config.depth, tower.config.patches)
        return sum(self.merging_at(tower, layers[begin - 1].mlp) for begin in self.begins)

    def merging_at(self, tower: VisionTower, tokens: int) -> int:
        """The same of one stage that so many tokens with CLS enter."""
        return self.merge * (tokens - 1) * tower.config.width

    def begin(self, tower: VisionTower, sentence_BD: Tensor, seeds_B: Tensor) -> Pruning:
        """The intervention for a batch, by its sentences."""
        return TextGuidedPruning(self, tower.steps, tower.config.patches, sentence_BD)


class TextGuidedPruning(Pruning):
    """ELIP's intervention for one batch.

    Args:
        config: Guidance other than ``none``.
        steps: All steps of the vision tower.
        patches: P of this input.
        sentence_BD: Sentence vectors; no gradient flows to them.
    """

    def __init__(self, config: ElipConfig, steps: Sequence[Step], patches: int, sentence_BD: Tensor) -> None:
        super().__init__(config.begins, between=False)
        self.config = config
        self.sentence_BD = sentence_BD.detach()
        ends = [*config.begins[1:], len(steps)]
        self.stages = {
            begin: (keep, steps[begin:end])
            for begin, end, keep in zip(config.begins, ends, config.keeps(patches), strict=True)
        }
        self.scores: dict[int, Tensor] = {}

    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Selection | None:
        """Keep what the blended CLS attends to most in the coming stage; all where trimming has left no more."""
        keep, coming = self.stages[layer]
        if image.x.shape[1] - 1 <= keep:
            return None
        self.scores[layer] = self._score(image, coming)
        present_Bn = None if image.present is None else image.present[:, 1:]
        return select(self.scores[layer], keep, self.config.merge, present_Bn)

    def blended_cls(self, image: TokenStream) -> Tensor:
        """(B, D) what asks which tokens matter: the vision CLS with the sentence's share in it."""
        share = self.config.vision_weight
        return (1 - share) * self.sentence_BD.to(image.x.dtype) + share * image.cls

    @torch.no_grad()
    def _score(self, image: TokenStream, coming: Sequence[Step]) -> Tensor:
        """(B, n) attention of the blended CLS in the last (``stage``) or first (``query``) coming layer."""
        asked = image.with_x(torch.cat([self.blended_cls(image)[:, None], image.x[:, 1:]], 1))
        judge = coming[0]
        if self.config.guidance == "stage":
            asked = execute(coming[:-1], {"image": asked})["image"]
            judge = coming[-1]
        block = judge.advances[0].block
        assert isinstance(block, PreNormBlock)
        return block.cls_attention(asked.x, asked.present)
