"""Fine-tuning for retrieval: what ranks pictures and texts is learned among a batch, with or without trimmers.

A picture and a text are encoded apart, as a search engine encodes each once: nothing of the other is there to guide
what is trimmed. Matching sees both.

B pairs of this process, L text tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.flops import Kept, StepCounts, block_macs, joining_macs, key_value_macs, linear_macs
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Intervention, Step, TokenStream, site
from pipeline.precision import at_least_float32
from pipeline.tasks.classes import RETRIEVAL
from pipeline.tasks.classification import Answers, ClassificationModel, ClassificationTask
from pipeline.tasks.compared import Compared
from pipeline.tasks.comparing import AmongTexts, ByContrast, Comparing, Encoded, Pairing, RetrievalConfig
from pipeline.tasks.retrieval import matching_parts
from pipeline.tasks.task import Losses
from pipeline.trimming.cost import CostModel, Units
from pipeline.trimming.smarttrim import Decision, Gate, PackedTrimming
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TrimmerConfig, Trimmers
from pipeline.trimming.vision_only import ReducedVision

_DEFAULT = RetrievalConfig()


class RetrievalModel(ClassificationModel):
    """A backbone whose features rank and whose matching ranks again, or ranks alone (METER); and what trims it.

    Its scores of a picture and a text say whether they belong together.

    Args:
        backbone: Shared, not copied; its pictures are encoded without a text from now on.
        trimmers: Sizes of what trims; None for the full model.
        policy: Who decides on tokens and heads.
        config: What a backbone without contrast is trained with.

    Raises:
        UserError: The backbone has no matching.
    """

    encodes_apart = True

    def __init__(
        self,
        backbone: Backbone,
        trimmers: TrimmerConfig | None,
        policy: Policy = SMARTTRIM,
        config: RetrievalConfig = _DEFAULT,
    ) -> None:
        if not backbone.fusion_steps:
            raise UserError(
                f"trim.task=retrieval wants matching, but {backbone.config.backbone} has none; pre-train with "
                "--model.backbone albef, blip or meter, or choose another trim.task"
            )
        backbone.visual_encoder.guide = "image"
        super().__init__(backbone, trimmers, policy, together=False, classes=RETRIEVAL)
        self.comparing: Comparing = ByContrast() if backbone.has_contrast else AmongTexts(config.false_texts)

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
        inputs, of_full, drawn = (pixels, ids_BL, mask_BL), None, None
        if full or self.trimmers is None:
            of_full, drawn = self._compared(*inputs, pairing, [], None)
        trimming = None if gate is None else self.trimming(ids_BL, mask_BL, gate)
        if trimming is None:
            return Answers(of_full)
        trimmed, _ = self._compared(*inputs, pairing, [trimming], drawn)
        return Answers(of_full, trimmed, _of_own_pairs(trimming.decisions, len(pixels)))

    def _compared(
        self,
        pixels: Tensor,
        ids_BL: Tensor,
        mask_BL: Tensor,
        pairing: Pairing,
        methods: list[Intervention],
        drawn: Any,
    ) -> tuple[Any, Any]:
        """`Compared` in the place of scores, and which pairs were drawn; None draws them."""
        image, text = self._apart(pixels, ids_BL, mask_BL, methods)
        encoded = Encoded(image, text, self.backbone.begin_fusion(text, ids_BL, mask_BL))
        return self.comparing.compared(self.backbone, pairing, encoded, methods, drawn)

    def cost_model(self) -> CostModel:
        """Cost of a picture and a text that are encoded, compared, and matched with each other."""
        return CostModel(self.backbone, matching_parts(self.backbone), self.trimmers, contrast=True)

    def training_cost_model(self) -> CostModel:
        """The same with the pairs that training matches besides."""
        return _WithFurtherPairs(self.backbone, self.trimmers, self.comparing.further)


class _WithFurtherPairs(CostModel):
    """Each instance's picture and text are matched with others too; in training what is masked is computed.

    Args:
        model: The backbone.
        trimmers: What trims it.
        further: How many pairs that are, for each instance.
    """

    def __init__(self, model: Backbone, trimmers: Trimmers | ReducedVision | None, further: int) -> None:
        super().__init__(model, matching_parts(model), trimmers, contrast=True)
        self.further = further

    def _layers(self, counts: Mapping[str, StepCounts], units: Units, steps: Sequence[Step]) -> Tensor:
        return super()._layers(counts, units, steps) + self.further * self._one_more(counts)

    def _own(
        self, kept: Mapping[str, Kept], units: Units, share: float | None = None, steps: Sequence[Step] | None = None
    ) -> Tensor:
        of_all = super()._own(kept, units, share, steps)
        return of_all + self.further * super()._own(kept, units, share, self.model.fusion_steps)

    def _one_more(self, counts: Mapping[str, StepCounts]) -> Tensor:
        """(B,) MACs of one more pair. An image that texts do not change keeps its keys and values (ALBEF, BLIP)."""
        model, sizes = self.model, self.model.config
        sites = [(advance, counts[site(step, advance)]) for step in model.fusion_steps for advance in step.advances]
        macs_B = torch.stack([block_macs(advance, of) for advance, of in sites]).sum(0) + linear_macs(model.itm_head)
        if any(advance.stream == "image" for advance, _ in sites):
            tokens = {advance.stream: of.tokens for advance, of in sites}
            return macs_B + joining_macs(model, tokens["text"], tokens["image"])
        shared = sum(key_value_macs(of.source, sizes.text.width, sizes.vision.width) for _, of in sites)
        return macs_B - shared


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
    """Fine-tuning on what the model makes of a batch's pairs; arguments as of the base."""

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """As of other tasks, on the batch's pairs."""
        gate, full = self.gate(progress), self.config.distill_weight > 0
        inputs = self.normalise(batch.pixels), batch.token_ids, batch.token_mask
        answers: Answers = forward(*inputs, gate, full, Pairing.of(batch))
        losses = self.losses_of(answers, self.classes.targets(batch), batch, progress)
        said: Compared = answers.full_BA if answers.trimmed_BA is None else answers.trimmed_BA  # type: ignore[assignment]
        return replace(losses, scalars={**losses.scalars, **said.scalars()})
