"""Fine-tuning for retrieval: contrast ranks, matching ranks the best again (ALBEF, BLIP), with or without trimmers.

A picture and a text are encoded apart, as a search engine encodes each once: nothing of the other is there to guide
what is trimmed. Matching sees both.

B pairs of this process, L text tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.flops import key_value_macs, linear_macs
from pipeline.measure.model_flops import steps_macs
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.objectives.gather import world_size
from pipeline.objectives.itm import Negatives
from pipeline.precision import at_least_float32
from pipeline.tasks.candidates import Candidates
from pipeline.tasks.classes import RETRIEVAL, Compared
from pipeline.tasks.classification import Answers, ClassificationModel, ClassificationTask
from pipeline.tasks.matching import hard_negatives, matching_logits, negative_chances
from pipeline.tasks.retrieval import matching_parts
from pipeline.tasks.task import Losses
from pipeline.trimming.cost import CostModel, Units
from pipeline.trimming.smarttrim import Decision, Gate, PackedTrimming
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TrimmerConfig, Trimmers

_CHUNK = 1024
"""Rows whose similarities are held while negatives are drawn."""
_NEGATIVES = 2
"""Of each pair: its text with another image, its image with another text."""


@dataclass(frozen=True)
class Pairing:
    """What a batch is compared with.

    Attributes:
        candidates: The rows that negatives are drawn from: those of all processes.
        chances_B3: Uniform numbers to draw them by.
    """

    candidates: Candidates
    chances_B3: Tensor

    @classmethod
    def of(cls, batch: ImageTextBatch) -> "Pairing":
        """Of a batch; processes call it together."""
        return cls(Candidates.of(batch, world_size() > 1), negative_chances(batch))


class RetrievalModel(ClassificationModel):
    """A backbone whose features rank and whose matching ranks again, and trimmers if it is to be trimmed.

    Its scores of a picture and a text say whether they belong together.

    Args:
        backbone: Shared, not copied; its pictures are encoded without a text from now on.
        trimmers: Sizes of what trims; None for the full model.
        policy: Who decides on tokens and heads.

    Raises:
        UserError: The backbone has no contrast, or no matching.
    """

    encodes_apart = True

    def __init__(self, backbone: Backbone, trimmers: TrimmerConfig | None, policy: Policy = SMARTTRIM) -> None:
        if not (backbone.has_contrast and backbone.fusion_steps):
            lacks = "matching" if backbone.has_contrast else "contrastive features"
            raise UserError(
                f"trim.task=retrieval wants contrast and matching, but {backbone.config.backbone} has no {lacks}; "
                "pre-train with --model.backbone albef or blip, or choose another trim.task"
            )
        backbone.visual_encoder.guide = "image"
        super().__init__(backbone, trimmers, policy, classes=RETRIEVAL)

    def make_head(self) -> nn.Module:
        """None: projections and matching's head are the backbone's."""
        return nn.Identity()

    def methods(self) -> list[Intervention]:
        """What takes out what is trimmed, for one batch of pictures, texts or pairs; empty for the full model."""
        return [] if self.trimmers is None else [PackedTrimming(self._scoring)]

    @property
    def _scoring(self) -> Trimmers:
        assert isinstance(self.trimmers, Trimmers), "retrieval is trimmed by scores"
        return self.trimmers

    def classify(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]) -> Tensor:
        """(B, 2) matching scores of each picture with its text; arguments as of other tasks."""
        text, image = self._encode(pixels, ids_BL, mask_BL, interventions)
        scores_B2: Tensor = self.backbone.itm_head(self._fused(text, image, interventions))
        return at_least_float32(scores_B2)

    def _encode(
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]
    ) -> tuple[TokenStream, TokenStream]:
        image, text = self._apart(pixels, ids_BL, mask_BL, interventions)
        return self.backbone.begin_fusion(text, ids_BL, mask_BL), image

    def _apart(
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: Sequence[Intervention]
    ) -> tuple[TokenStream, TokenStream]:
        """Image and text, neither of which sees the other."""
        image = self.backbone.encode_image(pixels, interventions)
        return image, self.backbone.encode_text(ids_BL, mask_BL, interventions)

    def forward(  # type: ignore[override]  # is compared with what the base does not know
        self,
        pixels: Tensor,
        ids_BL: Tensor,
        mask_BL: Tensor,
        gate: Gate | None,
        full: bool,
        pairing: Pairing | None = None,
    ) -> Answers:
        """What training compares: both models on the same pairs; without `pairing` the scores of `classify`."""
        if pairing is None:
            return super().forward(pixels, ids_BL, mask_BL, gate, full)
        inputs, of_full, negatives = (pixels, ids_BL, mask_BL), None, None
        if full or self.trimmers is None:
            of_full, negatives = self._compared(*inputs, pairing, [], None)
        trimming = None if gate is None else self.trimming(ids_BL, mask_BL, gate)
        if trimming is None:
            return Answers(of_full)
        trimmed, _ = self._compared(*inputs, pairing, [trimming], negatives)
        return Answers(of_full, trimmed, _of_own_pairs(trimming.decisions, len(pixels)))

    def _compared(
        self,
        pixels: Tensor,
        ids_BL: Tensor,
        mask_BL: Tensor,
        pairing: Pairing,
        methods: list[Intervention],
        negatives: Negatives | None,
    ) -> tuple[Any, Negatives]:
        """`Compared` in the place of scores, with given negatives or hard ones by these features."""
        model = self.backbone
        image, text = self._apart(pixels, ids_BL, mask_BL, methods)
        features = model.image_feature(image), model.text_feature(text)
        if negatives is None:
            chances_B3 = pairing.chances_B3
            negatives = hard_negatives(pairing.candidates, features, features, model.temp, chances_B3, _CHUNK)
        begun = model.begin_fusion(text, ids_BL, mask_BL)
        logits_N2 = matching_logits(model, pairing.candidates, begun, image, negatives, methods)
        return Compared(*features, at_least_float32(model.temp), at_least_float32(logits_N2)), negatives

    def cost_model(self) -> CostModel:
        """Cost of a picture and a text that are encoded, compared, and matched with each other."""
        return CostModel(self.backbone, matching_parts(self.backbone), self.trimmers, contrast=True)

    def training_cost_model(self) -> CostModel:
        """The same with the negatives that training matches."""
        return _WithNegatives(self.backbone, matching_parts(self.backbone), self.trimmers, contrast=True)


class _WithNegatives(CostModel):
    """Further texts look at images whose keys and values are made already."""

    def full(self, units: Units) -> Tensor:
        """See the base."""
        return super().full(units) + self._negatives(units)

    def at_share(self, units: Units, share: float) -> Tensor:
        """See the base; in training what is masked is computed like the rest."""
        return super().at_share(units, share) + self._negatives(units)

    def _negatives(self, units: Units) -> Tensor:
        model, sizes = self.model, self.model.config
        shared = float(key_value_macs(1.0 + units.vision[0], sizes.text.width, sizes.vision.width))
        each = [
            steps_macs(model.fusion_steps, {"text": 1 + int(text), "image": 1 + int(image)})
            for text, image in zip(units.text.tolist(), units.vision.tolist(), strict=True)
        ]
        once = linear_macs(model.itm_head) - len(model.fusion_steps) * shared
        return _NEGATIVES * (torch.tensor(each, device=units.text.device) + once)


def _of_own_pairs(decisions: Mapping[str, Decision], size: int) -> dict[str, Decision]:
    """What was decided on pictures, texts and the pairs that belong together, which stand before their negatives."""

    def first(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[:size]

    return {
        name: replace(
            each,
            tokens_B=each.tokens_B[:size],
            self_BH=first(each.self_BH),
            cross_BH=first(each.cross_BH),
            origin=first(each.origin),
            present_BN=first(each.present_BN),
        )
        for name, each in decisions.items()
    }


class RetrievalTask(ClassificationTask):
    """Fine-tuning by contrast among the batch and matching with hard negatives; arguments as of the base."""

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """As of other tasks, on the batch's pairs."""
        gate, full = self.gate(progress), self.config.distill_weight > 0
        inputs = self.normalise(batch.pixels), batch.token_ids, batch.token_mask
        answers: Answers = forward(*inputs, gate, full, Pairing.of(batch))
        losses = self.losses_of(answers, self.classes.targets(batch), batch, progress)
        said = answers.full_BA if answers.trimmed_BA is None else answers.trimmed_BA
        assert isinstance(said, Compared)
        return replace(losses, scalars={**losses.scalars, "temperature": said.temperature.detach().clone().squeeze()})
