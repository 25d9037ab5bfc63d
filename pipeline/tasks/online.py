"""One pre-training step of each backbone, from pixels and texts to named losses.

ALBEF: contrast, matching, masked words. BLIP: contrast, matching, captioning. METER: matching, masked words. CLIP:
symmetric contrast. Each is put together from the same encoders, pruning, pools of negatives and losses.

B batch of this process, N rows that negatives are drawn from, L text tokens, D width, V vocabulary, M words to tell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.config import BackboneName
from pipeline.models.schedule import TokenStream
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.infonce import symmetric_contrast
from pipeline.objectives.itc import FeatureQueue, contrast
from pipeline.objectives.itm import Negatives, draw_rows, matching_loss, negative_weights
from pipeline.objectives.lm import caption_loss, next_words
from pipeline.objectives.mlm import MaskedWords, Vocabulary, mask_words, word_loss
from pipeline.objectives.momentum import MomentumTower
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.intervention import Pruning, ReplayedPruning
from pipeline.tasks.candidates import Candidates, both, picked
from pipeline.tasks.contrasting import Contrasting, Features
from pipeline.tasks.matching import hard_negatives, matching_logits, negative_chances, true_first


@dataclass(frozen=True)
class Draws:
    """Random choices of a step; recorded ones can be put in to repeat it.

    Attributes:
        chances_B3: Uniform numbers of each sample, for its negatives.
        words: Masked words; None for a backbone without that loss.
        negatives: Given ones; None to draw them.
    """

    chances_B3: Tensor
    words: MaskedWords | None = None
    negatives: Negatives | None = None


@dataclass(frozen=True)
class Memory:
    """What the online model learns from besides the batch."""

    teacher: MomentumTower
    queue: FeatureQueue


class OnlineModel(nn.Module):
    """Base of the four steps: encoders with pruning, and pools of negatives.

    Args:
        model: The online model.
        objectives: Constants.
        pruning: Of the vision tower.
        words: Mask id and vocabulary size.
    """

    def __init__(self, model: Backbone, objectives: ObjectiveConfig, pruning: PruningConfig, words: Vocabulary) -> None:
        super().__init__()
        self.model = model
        self.objectives = objectives
        self.pruning = pruning
        self.words = words

    def draw(self, batch: ImageTextBatch) -> Draws:
        """The random choices that belong to the batch's samples."""
        return Draws(negative_chances(batch.draw_seeds, 3))

    def mask(self, batch: ImageTextBatch) -> MaskedWords:
        """The batch's texts with words masked."""
        share = self.objectives.mask_share
        return mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, share, self.words)

    def guide(self, batch: ImageTextBatch, plain: TokenStream, masked: TokenStream | None = None) -> Tensor:
        """(B, D of vision) the sentences that guide pruning, as the configuration says."""
        whose = self.pruning.elip.sentence
        if whose == "masked":
            assert masked is not None, "only steps that mask words can be guided by them"
            return self.model.sentence(masked)
        sentence_BD = self.model.sentence(plain)
        if whose == "own" or self.pruning.chosen is not self.pruning.elip:
            return sentence_BD
        # Of the whole batch, whatever matching's negatives are drawn from: so that it is the same on any processes.
        everywhere = Candidates.of(batch, True)
        return everywhere.constant(sentence_BD)[everywhere.next_other()]

    def pruned_image(self, pixels: Tensor, sentence_BD: Tensor, seeds_B: Tensor) -> tuple[TokenStream, Pruning | None]:
        """Images pruned by sentences, by themselves or by chance, and what was chosen."""
        pruning = self.pruning.begin(self.model.visual_encoder, sentence_BD, seeds_B)
        return self.model.encode_image(pixels, [] if pruning is None else [pruning]), pruning

    def teach_image(self, teacher: Backbone, pixels: Tensor, pruning: Pruning | None) -> TokenStream:
        """Images of the momentum tower, pruned as the online ones if they are to be."""
        repeated = pruning if self.pruning.prune_momentum else None
        return teacher.encode_image(pixels, [] if repeated is None else [ReplayedPruning(repeated)])

    def candidates(self, batch: ImageTextBatch) -> Candidates:
        """The rows that matching draws its negatives from."""
        return Candidates.of(batch, self.objectives.negatives == "global")

    def contrast(self, features: Features, temperature: Tensor, memory: Memory | None, alpha: float) -> Tensor:
        """Contrastive loss of a batch: with the momentum tower's labels, where there is one.

        Args:
            features: Of this process's rows.
            temperature: With gradient.
            memory: Its queue keeps the momentum features aside.
            alpha: Weight of soft labels.
        """
        images, texts, chunk = features.image_BE, features.text_BE, self.objectives.contrast_chunk
        if memory is None:
            return symmetric_contrast(images, texts, temperature, chunk)
        assert features.image_m_BE is not None and features.text_m_BE is not None
        momentum = features.image_m_BE, features.text_m_BE
        return contrast(images, texts, *momentum, memory.queue, temperature, alpha, chunk=chunk)

    def contrasted(
        self, features: Features, memory: Memory | None, alpha: float, contrasting: Contrasting | None
    ) -> Tensor | None:
        """The same, or what is put in its place."""
        temperature = self.model.temp
        if contrasting is not None:
            return contrasting(features, temperature)
        return self.contrast(features, temperature, memory, alpha)

    def hard_negatives(self, candidates: Candidates, features: Features, chances_B3: Tensor) -> Negatives:
        """Drawn in proportion to similarity (ALBEF, section 3.2)."""
        assert features.image_m_BE is not None and features.text_m_BE is not None
        momentum = features.image_m_BE, features.text_m_BE
        return hard_negatives(
            candidates,
            (features.image_BE, features.text_BE),
            momentum,
            self.model.temp,
            chances_B3,
            self.objectives.contrast_chunk,
        )


class AlbefStep(OnlineModel):
    """ALBEF's three losses, as the reference computes them between its momentum update and its queue's."""

    def draw(self, batch: ImageTextBatch) -> Draws:
        """Negatives and masked words."""
        return replace(super().draw(batch), words=self.mask(batch))

    def forward(
        self,
        pixels: Tensor,
        batch: ImageTextBatch,
        draws: Draws,
        memory: Memory,
        alpha: float,
        contrasting: Contrasting | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            pixels: (B, 3, height, width), normalised.
            batch: Token ids, masks and sample ids.
            draws: Random choices.
            memory: Momentum tower, which has followed the online model already, and queue, which keeps this batch's
                features aside.
            alpha: Weight of soft labels.
            contrasting: Gives contrast from the batch's features; None for that among this batch.

        Returns:
            ``itc``, ``itm``, ``mlm``: scalars; nothing where `contrasting` wanted the features alone.
        """
        words = draws.words
        assert words is not None
        plain, masked = encode_both_texts(self.model, batch, words)
        image, pruning = self.pruned_image(pixels, self.guide(batch, plain, masked), batch.draw_seeds)
        teacher = memory.teacher.model
        with torch.no_grad():
            plain_m, masked_m = encode_both_texts(teacher, batch, words)
            image_m = self.teach_image(teacher, pixels, pruning)
        features = features_of(self.model, image, plain, teacher, image_m, plain_m)
        itc = self.contrasted(features, memory, alpha, contrasting)
        if itc is None:
            return {}
        with torch.no_grad():
            told_m = words.at(teacher.fuse(masked_m, image_m).text.x)
            momentum_scores_MV = teacher.word_scores(told_m)
        candidates = self.candidates(batch)
        negatives = draws.negatives or self.hard_negatives(candidates, features, draws.chances_B3)
        logits_N2, told = self._match_and_tell(candidates, plain, masked, image, negatives)
        scores_MV = self.model.word_scores(words.at(told))
        return {
            "itc": itc,
            "itm": matching_loss(logits_N2, true_first(len(pixels), pixels.device)),
            "mlm": word_loss(scores_MV, words.target_M, momentum_scores_MV, alpha),
        }

    def _match_and_tell(
        self, candidates: Candidates, plain: TokenStream, masked: TokenStream, image: TokenStream, negatives: Negatives
    ) -> tuple[Tensor, Tensor]:
        """Pairs, their two kinds of negatives and the masked texts in one pass; images' keys are made once."""
        own = candidates.own_B
        pairs_and_negatives = picked(candidates.texts(plain), torch.cat([own, own, negatives.text_B]))
        rows = torch.cat([own, negatives.image_B, own, own])
        shown = candidates.shown(candidates.images(image), rows)
        fused = self.model.fuse(both(pairs_and_negatives, masked), shown)
        pairs = 3 * len(own)
        return self.model.itm_head(fused.features_BF[:pairs]), fused.text.x[pairs:]


class BlipStep(OnlineModel):
    """BLIP's three losses."""

    def forward(
        self,
        pixels: Tensor,
        batch: ImageTextBatch,
        draws: Draws,
        memory: Memory,
        alpha: float,
        contrasting: Contrasting | None = None,
    ) -> dict[str, Tensor]:
        """``itc``, ``itm``, ``lm``; arguments as in `AlbefStep.forward`."""
        model = self.model
        assert isinstance(model, Blip)
        text = model.encode_text(batch.token_ids, batch.token_mask)
        image, pruning = self.pruned_image(pixels, self.guide(batch, text), batch.draw_seeds)
        teacher = memory.teacher.model
        with torch.no_grad():
            text_m = teacher.encode_text(batch.token_ids, batch.token_mask)
            image_m = self.teach_image(teacher, pixels, pruning)
        features = features_of(model, image, text, teacher, image_m, text_m)
        itc = self.contrasted(features, memory, alpha, contrasting)
        if itc is None:
            return {}
        # The decoder attends to the image through the encoder's own cross-attention: its keys and values are made once.
        image = replace(image, memo={})
        candidates = self.candidates(batch)
        negatives = draws.negatives or self.hard_negatives(candidates, features, draws.chances_B3)
        starts = model.begin_fusion(text, batch.token_ids, batch.token_mask)
        logits_N2 = matching_logits(model, candidates, starts, image, negatives)
        told_BL = next_words(batch.token_mask)
        scores_MV = model.word_scores(model.decode(batch.token_ids, batch.token_mask, image)[told_BL])
        return {
            "itc": itc,
            "itm": matching_loss(logits_N2, true_first(len(pixels), pixels.device)),
            "lm": caption_loss(scores_MV, batch.token_ids[told_BL.roll(1, 1)]),
        }


class MeterStep(OnlineModel):
    """METER's two losses; half the images of matching are replaced by another row's."""

    def draw(self, batch: ImageTextBatch) -> Draws:
        """Replacements and masked words."""
        return replace(super().draw(batch), words=self.mask(batch))

    def forward(
        self, pixels: Tensor, batch: ImageTextBatch, draws: Draws, memory: None, alpha: float
    ) -> dict[str, Tensor]:
        """``itm``, ``mlm``; arguments as in `AlbefStep.forward`, there is no memory."""
        words = draws.words
        assert words is not None
        plain, masked = encode_both_texts(self.model, batch, words)
        candidates = self.candidates(batch)
        even_BN = torch.zeros(candidates.same_BN.shape, device=pixels.device)
        others_B = draw_rows(negative_weights(even_BN, candidates.same_BN, candidates.own_B), draws.chances_B3[:, 0])
        true_B = draws.chances_B3[:, 2] < 0.5
        shown_B = torch.where(true_B, candidates.own_B, others_B)
        text = both(plain, masked)
        fused = self.model.fuse(text, self._images(pixels, text, candidates, shown_B, batch.draw_seeds))
        size = len(pixels)
        scores_MV = self.model.word_scores(words.at(fused.text.x[size:]))
        return {
            "itm": matching_loss(self.model.itm_head(fused.features_BF[:size]), true_B),
            "mlm": word_loss(scores_MV, words.target_M),
        }

    def _images(
        self, pixels: Tensor, text: TokenStream, candidates: Candidates, shown_B: Tensor, seeds_B: Tensor
    ) -> TokenStream:
        """The images that the plain texts are shown, then those of the masked texts."""
        sentence_BD = self.model.sentence(text)
        if self.pruning.chosen is self.pruning.elip:
            # An image pruned by one text is not what another text would have left: each pair has its own, and as in
            # the reference the masked text prunes for the word loss.
            shown = candidates.constant(pixels)[shown_B]
            return self.pruned_image(torch.cat([shown, pixels]), sentence_BD, seeds_B.repeat(2))[0]
        image, _ = self.pruned_image(pixels, sentence_BD[: len(pixels)], seeds_B)
        return candidates.shown(candidates.images(image), torch.cat([shown_B, candidates.own_B]))


class ClipStep(OnlineModel):
    """CLIP's symmetric contrast over the global batch."""

    def forward(
        self,
        pixels: Tensor,
        batch: ImageTextBatch,
        draws: Draws,
        memory: None,
        alpha: float,
        contrasting: Contrasting | None = None,
    ) -> dict[str, Tensor]:
        """``itc``; arguments as in `AlbefStep.forward`, there is no memory."""
        text = self.model.encode_text(batch.token_ids, batch.token_mask)
        image, _ = self.pruned_image(pixels, self.guide(batch, text), batch.draw_seeds)
        features = Features(self.model.image_feature(image), self.model.text_feature(text))
        itc = self.contrasted(features, memory, alpha, contrasting)
        return {} if itc is None else {"itc": itc}


STEPS: Mapping[BackboneName, Callable[..., OnlineModel]] = {
    "albef": AlbefStep,
    "blip": BlipStep,
    "meter": MeterStep,
    "clip": ClipStep,
}


def features_of(
    model: Backbone, image: TokenStream, text: TokenStream, teacher: Backbone, image_m: TokenStream, text_m: TokenStream
) -> Features:
    """Of the encoded batch, by the online model and by its momentum tower."""
    with torch.no_grad():
        momentum = teacher.image_feature(image_m), teacher.text_feature(text_m)
    return Features(model.image_feature(image), model.text_feature(text), *momentum)


def encode_both_texts(model: Backbone, batch: ImageTextBatch, words: MaskedWords) -> tuple[TokenStream, TokenStream]:
    """The plain and the masked text through the text-only layers, in one pass."""
    ids, mask = torch.cat([batch.token_ids, words.ids_BL]), batch.token_mask.repeat(2, 1)
    encoded = model.encode_text(ids, mask)
    assert encoded.present is not None
    plain, masked = (TokenStream(*halves) for halves in zip(encoded.x.chunk(2), encoded.present.chunk(2), strict=True))
    return plain, masked
