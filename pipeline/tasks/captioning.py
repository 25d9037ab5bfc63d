"""Captioning: BLIP's decoder tells of a picture behind a prompt, with or without trimmers.

Its training is that of the other tasks (`classification`): a word is one of the vocabulary's classes, and a caption has
as many instances as words. Here are the model, and how it tells where nobody says the words before.

B pictures, R rows of texts that grow, L text tokens, M words to tell or the most tokens of a text, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch
from pipeline.generation import BeamConfig, generate
from pipeline.measure.flops import Speech, linear_macs
from pipeline.models.backbone import Backbone
from pipeline.models.blip_tasks import BlipCaptioner
from pipeline.models.packing import unpack
from pipeline.models.past import Past
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.precision import at_least_float32
from pipeline.tasks.classes import Captions
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.decoders import with_decoder
from pipeline.tasks.gallery import check_finite
from pipeline.trimming.cost import CostModel, Units, units_of
from pipeline.trimming.smarttrim import Decision, PackedTrimming
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TrimmerConfig, Trimmers


def captioner_of(backbone: Backbone) -> BlipCaptioner:
    """The captioner in a pre-trained BLIP: its vision tower and its decoder, shared and not copied.

    Raises:
        UserError: It is another backbone.
    """
    if isinstance(backbone, BlipCaptioner):
        return backbone
    blip = with_decoder(backbone, "captioning", "blip", "another trim.task")
    with torch.device("meta"):
        captioner = BlipCaptioner(blip.config)
    guide = captioner.visual_encoder.guide
    captioner.visual_encoder, captioner.text_decoder = blip.visual_encoder, blip.text_decoder
    captioner.visual_encoder.guide = guide
    return captioner.train(blip.training)


@dataclass(frozen=True)
class Told:
    """What was told of pictures.

    Attributes:
        ids_BM: The texts, [DEC]'s place and prompt first; behind its end a text has only end tokens.
        lengths_B: Their tokens, the end included.
        finite_B: Whether all scores of words were numbers.
        decisions: What was trimmed.
    """

    ids_BM: Tensor
    lengths_B: Tensor
    finite_B: Tensor
    decisions: Mapping[str, Decision]


@dataclass
class _Speaker:
    """A captioner with the methods that act on its layers; knows whose scores were all numbers."""

    backbone: BlipCaptioner
    methods: Sequence[Intervention]
    finite_B: Tensor

    def next_scores(self, ids_RL: Tensor, image: TokenStream, past: Past) -> Tensor:
        """See `BlipCaptioner.next_scores`."""
        scores_RV = self.backbone.next_scores(ids_RL, image, past, self.methods)
        self.finite_B = self.finite_B & scores_RV.isfinite().view(len(self.finite_B), -1).all(1)
        return scores_RV


class CaptioningModel(ClassificationModel):
    """A captioner, and trimmers if it is to be trimmed.

    Args:
        backbone: BLIP, or its captioner; shared, not copied.
        trimmers: Sizes of what trims; None for the full model.
        policy: Who decides on tokens and heads.
        classes: What is given and what is told.

    Raises:
        UserError: The backbone has no decoder.
    """

    backbone: BlipCaptioner
    classes: Captions

    def __init__(
        self,
        backbone: Backbone,
        trimmers: TrimmerConfig | None,
        policy: Policy = SMARTTRIM,
        classes: Captions = Captions("captioning", ()),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(captioner_of(backbone), trimmers, policy, classes=classes)

    def make_head(self) -> nn.Module:
        """None: words are the decoder's."""
        return nn.Identity()

    def classify(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]) -> Tensor:
        """(M, V) scores of the words to tell, each behind the right ones; arguments as of other tasks."""
        image = self.backbone.encode_image(pixels, interventions)
        fused = self.backbone.fuse(self.backbone.embed_text(ids_BL, mask_BL), image, interventions)
        x_BLD = unpack(fused.text).x
        told_MD = x_BLD[self.classes.words(mask_BL)[:, : x_BLD.shape[1]]]
        return at_least_float32(self.backbone.word_scores(told_MD))

    @torch.no_grad()
    def tell(self, pixels: Tensor, prompt_1L: Tensor, config: BeamConfig, end: int) -> Told:
        """The best text of each picture; what is trimmed is not computed.

        Args:
            pixels: (B, 3, height, width), normalised.
            prompt_1L: Token ids that the texts begin with, one that [DEC] replaces first.
            config: The search.
            end: Id of the end token.

        Raises:
            UserError: The prompt leaves no room.
        """
        trimming = None if self.trimmers is None else PackedTrimming(self._scoring)
        methods: list[Intervention] = [] if trimming is None else [trimming]
        image = self.backbone.encode_image(pixels, methods)
        every_B = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        speaker = _Speaker(self.backbone, methods, every_B)
        ids_BM = generate(speaker, prompt_1L, image, config, end)
        lengths_B = ((ids_BM != end).sum(1) + 1).clamp(max=ids_BM.shape[1])
        return Told(ids_BM, lengths_B, speaker.finite_B, {} if trimming is None else trimming.decisions)

    def retold(self, batch: ImageTextBatch, pixels: Tensor, config: BeamConfig, end: int) -> ImageTextBatch:
        """The same pictures with what the model tells of them as it is now, as long as that is.

        Args:
            batch: Pictures with captions behind the prompt.
            pixels: Of them, normalised.
            config: The search.
            end: Id of the end token.

        Raises:
            UserError: A score is not finite.
        """
        told = self.tell(pixels, batch.token_ids[:1, : self.classes.given], config, end)
        check_finite(told.finite_B, batch.keys.__getitem__, "scores of words")
        places_M = torch.arange(told.ids_BM.shape[1], device=pixels.device)
        return replace(batch, token_ids=told.ids_BM, token_mask=places_M < told.lengths_B[:, None])

    @torch.no_grad()
    def cost_shares(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """See the base, of telling texts as long as these; all is decided in the first pass, by [DEC] alone."""
        trimming, units = PackedTrimming(self._scoring), units_of(self.backbone, mask_BL)
        image = self.backbone.encode_image(pixels, [trimming])
        self.backbone.fuse(self.backbone.embed_text(ids_BL[:, :1], mask_BL[:, :1]), image, [trimming])
        return self.macs(trimming.decisions, units) / self.full_macs(units)

    def units(self, told: Told) -> Units:
        """What costs are counted from: the patches of the pictures, and the texts' own tokens."""
        text_B = told.lengths_B - 1
        return Units(torch.full_like(text_B, self.backbone.config.vision.patches), text_B)

    @property
    def _scoring(self) -> Trimmers:
        assert isinstance(self.trimmers, Trimmers), "captioners are trimmed by scores"
        return self.trimmers

    def cost_model(self) -> CostModel:
        """Cost of telling: the picture, and the words with all beams."""
        return self._cost(self.classes.beams)

    def training_cost_model(self) -> CostModel:
        """Cost of learning a caption: all its words at once."""
        return self._cost(1)

    def _cost(self, beams: int) -> CostModel:
        decoder = self.backbone.text_decoder
        words = decoder.config.width * decoder.config.vocab_size
        speech = Speech(self.classes.given, beams, linear_macs(decoder.cls.predictions.transform) + words)
        return CostModel(self.backbone, self.cls_head, self.trimmers, speech=speech)
