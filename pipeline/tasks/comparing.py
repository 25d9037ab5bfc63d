"""How retrieval's training compares the pairs of a batch: by contrast and hard negatives, or each text among others.

B pairs of this process, N rows that others are drawn from, C other texts of a picture, P pairs that are matched.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.limits import at_least
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.objectives.gather import world_size
from pipeline.objectives.itm import Negatives
from pipeline.precision import at_least_float32
from pipeline.tasks.candidates import Candidates, picked
from pipeline.tasks.compared import Compared, Contrasted, Ranked
from pipeline.tasks.matching import hard_negatives, matching_logits, negative_chances

_CHUNK = 1024
"""Rows whose similarities are held while negatives are drawn."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How retrieval is trained where matching alone ranks.

    Attributes:
        false_texts: Texts of other pictures of the batch that each picture is matched with beside its own, where there
            is no contrast (METER; the reference's is 15; others do not read it); fewer where the batch has fewer.
    """

    false_texts: int = 15

    def __post_init__(self) -> None:
        at_least(self, "trim.retrieval", 1, "false_texts")


@dataclass(frozen=True)
class Pairing:
    """What a batch is compared with.

    Attributes:
        candidates: The rows that others are drawn from: those of all processes.
        seeds_B: That the draws of each pair derive from.
    """

    candidates: Candidates
    seeds_B: Tensor

    @classmethod
    def of(cls, batch: ImageTextBatch) -> "Pairing":
        """Of a batch; processes call it together."""
        return cls(Candidates.of(batch, world_size() > 1), batch.draw_seeds)


class Encoded(NamedTuple):
    """The pictures and texts of a batch.

    Attributes:
        image: From `Backbone.encode_image`.
        text: From `Backbone.encode_text`.
        begun: From `Backbone.begin_fusion`.
    """

    image: TokenStream
    text: TokenStream
    begun: TokenStream


class Comparing(ABC):
    """What training makes of a batch; the full and the trimmed model compare the same pairs."""

    @property
    @abstractmethod
    def further(self) -> int:
        """Pairs that are matched for each instance beside its own."""

    @abstractmethod
    def compared(
        self, model: Backbone, pairing: Pairing, encoded: Encoded, methods: Sequence[Intervention], drawn: Any
    ) -> tuple[Compared, Any]:
        """What a model says, and which pairs it was asked of; the pairs that belong together stand before others.

        Args:
            model: Fuses and judges.
            pairing: Of the batch.
            encoded: Of the batch, of this process.
            methods: That act on the fusion layers.
            drawn: Which pairs, as given back before; None draws them.
        """


class ByContrast(Comparing):
    """Features among the batch; each text with another image and each image with another text, hard ones (ALBEF)."""

    @property
    def further(self) -> int:
        """See the base."""
        return 2

    def compared(
        self,
        model: Backbone,
        pairing: Pairing,
        encoded: Encoded,
        methods: Sequence[Intervention],
        drawn: Negatives | None,
    ) -> tuple[Contrasted, Negatives]:
        """See the base; negatives are hard by these features."""
        features = model.image_feature(encoded.image), model.text_feature(encoded.text)
        if drawn is None:
            chances_B3 = negative_chances(pairing.seeds_B, 3)
            drawn = hard_negatives(pairing.candidates, features, features, model.temp, chances_B3, _CHUNK)
        logits_N2 = matching_logits(model, pairing.candidates, encoded.begun, encoded.image, drawn, methods)
        return Contrasted(*features, at_least_float32(model.temp), at_least_float32(logits_N2)), drawn


class FalseTexts(NamedTuple):
    """Other texts of each picture.

    Attributes:
        rows_BC: Of the candidates.
        there_BC: False where the batch has no further one.
    """

    rows_BC: Tensor
    there_BC: Tensor

    @classmethod
    def of(cls, pairing: Pairing, count: int) -> "FalseTexts":
        """Drawn by chance, each at most once, none of the same picture or with the same words."""
        same_BN = pairing.candidates.same_BN
        chances_BN = negative_chances(pairing.seeds_B, same_BN.shape[1]).masked_fill(same_BN, torch.inf)
        least_BC = chances_BN.topk(min(count, same_BN.shape[1] - 1), largest=False)
        return cls(least_BC.indices, least_BC.values.isfinite())


@dataclass(frozen=True)
class AmongTexts(Comparing):
    """Each picture's own text among others, all of them matched (METER's `compute_irtr`).

    Attributes:
        false_texts: C, as far as the batch has so many.
    """

    false_texts: int

    @property
    def further(self) -> int:
        """See the base."""
        return self.false_texts

    def compared(
        self,
        model: Backbone,
        pairing: Pairing,
        encoded: Encoded,
        methods: Sequence[Intervention],
        drawn: FalseTexts | None,
    ) -> tuple[Ranked, FalseTexts]:
        """See the base."""
        drawn, own_B = drawn or FalseTexts.of(pairing, self.false_texts), pairing.candidates.own_B
        rows_P = torch.cat([own_B[:, None], drawn.rows_BC], 1).T.flatten()  # the own pairs first
        texts = picked(pairing.candidates.texts(encoded.begun), rows_P)
        images_P = torch.arange(len(own_B), device=own_B.device).repeat(len(rows_P) // len(own_B))
        fused = model.fuse(texts, replace(encoded.image, rows=images_P), methods)
        scores_BC = model.match_score(fused.features_BF).view(-1, len(own_B)).T
        there_BC = torch.cat([torch.ones_like(drawn.there_BC[:, :1]), drawn.there_BC], 1)
        return Ranked.of(scores_BC, there_BC), drawn
