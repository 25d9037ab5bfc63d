"""One pre-training step of each backbone, from pixels and texts to named losses.

ALBEF: contrast, matching, masked words. BLIP: contrast, matching, captioning. METER: matching, masked words. CLIP:
symmetric contrast. Each is put together from the same encoders, pruning, pools of negatives and losses.

B batch of this process, N rows that negatives are drawn from, L text tokens, D width, V vocabulary, M words to tell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch
from pipeline.data.seeds import uniforms
from pipeline.limits import a_share, at_least
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.config import BackboneName
from pipeline.models.schedule import TokenStream
from pipeline.objectives.gather import gather_constant, gather_with_gradient
from pipeline.objectives.infonce import symmetric_contrast
from pipeline.objectives.itc import Contrast, FeatureQueue, contrast, own_columns
from pipeline.objectives.itm import Negatives, draw_rows, matching_loss, negative_weights
from pipeline.objectives.lm import caption_loss, next_words
from pipeline.objectives.mlm import MaskedWords, Vocabulary, mask_words, word_loss
from pipeline.objectives.momentum import MomentumTower
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.intervention import Pruning, ReplayedPruning

# Tells the draws of negatives from those of masked words, which begin at the sample's own seed.
_NEGATIVES = 0x6E656761746976


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Constants of the losses; each backbone reads those of the losses it has.

    Attributes:
        queue: Length of the feature queue (ALBEF, BLIP).
        queue_start: Share of training from which the queue serves as keys. Features that change fast at first are told
            from older ones by their age alone, and nothing is learned (SwAV's queue starts late for the same reason).
        momentum: μ of the momentum tower (ALBEF, BLIP).
        alpha: Weight of the momentum model's soft labels (ALBEF, BLIP).
        alpha_ramp: Share of training over which `alpha` rises from 0 (ALBEF: its first epoch).
        mask_share: Probability that a word is masked (ALBEF, METER).
        negatives: Whether matching draws its negatives from this process's part of the batch (``local``, as the
            references do) or from the whole batch (``global``: the same draws on any number of processes).
        temperature_lr: Learning rate of the temperature over the model's; small models train at high rates, at which
            the temperature would run ahead of the features.
    """

    queue: int = 65536
    queue_start: float = 0.0
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp: float = 1 / 30
    mask_share: float = 0.15
    negatives: Literal["local", "global"] = "local"
    temperature_lr: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, "objectives", 0, "queue", "temperature_lr")
        a_share(self, "objectives", "queue_start", "momentum", "alpha", "alpha_ramp", "mask_share")


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


@dataclass(frozen=True)
class Pool:
    """What negatives are drawn from: the texts as fusion begins with them, the images, and who they are.

    Attributes:
        text: N rows.
        image: N rows.
        own: Where this process's rows stand.
        same_BN: True where row and column may not be each other's negatives.
    """

    text: TokenStream
    image: TokenStream
    own: slice
    same_BN: Tensor

    @property
    def own_B(self) -> Tensor:
        """Number of each own row."""
        return torch.arange(self.own.start, self.own.stop, device=self.same_BN.device)

    def shown(self, rows: Tensor) -> TokenStream:
        """The images for texts that attend to these rows; of other processes' images only those that are needed."""
        if len(self.image.x) == len(self.same_BN):
            return replace(self.image, rows=rows)
        needed, inverse = rows.unique(return_inverse=True)
        size = None if self.image.size is None else self.image.size[needed]
        return TokenStream(self.image.x[needed], rows=inverse, size=size)


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
        return Draws(uniforms(batch.draw_seeds ^ _NEGATIVES, 3))

    def mask(self, batch: ImageTextBatch) -> MaskedWords:
        """The batch's texts with words masked."""
        share = self.objectives.mask_share
        return mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, share, self.words)

    def guide(self, plain: TokenStream, masked: TokenStream | None = None) -> TokenStream:
        """The texts that guide pruning, as the configuration says."""
        whose = self.pruning.elip.sentence
        if whose == "other":
            return picked(plain, torch.arange(len(plain.x), device=plain.x.device).roll(1))
        if whose == "masked":
            assert masked is not None, "only steps that mask words can be guided by them"
            return masked
        return plain

    def pruned_image(self, pixels: Tensor, text: TokenStream, seeds_B: Tensor) -> tuple[TokenStream, Pruning | None]:
        """Images pruned by these texts, by themselves or by chance, and what was chosen."""
        pruning = self.pruning.begin(self.model.visual_encoder, self.model.sentence(text), seeds_B)
        return self.model.encode_image(pixels, [] if pruning is None else [pruning]), pruning

    def teach_image(self, teacher: Backbone, pixels: Tensor, pruning: Pruning | None) -> TokenStream:
        """Images of the momentum tower, pruned as the online ones if they are to be."""
        repeated = pruning if self.pruning.prune_momentum else None
        return teacher.encode_image(pixels, [] if repeated is None else [ReplayedPruning(repeated)])

    def pool(self, batch: ImageTextBatch, text: TokenStream, image: TokenStream) -> Pool:
        """Rows to draw negatives from: the batch's own, or those of all processes."""
        everywhere = self.objectives.negatives == "global"
        gather = gather_constant if everywhere else _as_it_is
        ids_NL, samples_N = gather(batch.token_ids), gather(batch.sample_ids)
        same_words = (batch.token_ids[:, None] == ids_NL[None]).all(-1)
        same_BN = same_words | (batch.sample_ids[:, None] == samples_N[None])
        if not everywhere:
            return Pool(text, image, slice(0, len(batch)), same_BN)
        assert text.present is not None
        text = TokenStream(gather_with_gradient(text.x), gather_constant(text.present), causal=text.causal)
        size = None if image.size is None else gather_constant(image.size)
        image = TokenStream(gather_with_gradient(image.x), size=size)
        return Pool(text, image, own_columns(len(batch)), same_BN)

    def hard_negatives(self, pool: Pool, contrasted: Contrast, chances_B3: Tensor) -> Negatives:
        """Drawn in proportion to similarity (ALBEF, section 3.2)."""
        columns = slice(None) if self.objectives.negatives == "global" else own_columns(len(chances_B3))
        logits = contrasted.text_to_image_BG[:, columns], contrasted.image_to_text_BG[:, columns]
        image_B, text_B = (
            draw_rows(negative_weights(of, pool.same_BN, pool.own_B), chances_B3[:, way])
            for way, of in enumerate(logits)
        )
        return Negatives(image_B, text_B)


class AlbefStep(OnlineModel):
    """ALBEF's three losses, as the reference computes them between its momentum update and its queue's."""

    def draw(self, batch: ImageTextBatch) -> Draws:
        """Negatives and masked words."""
        return replace(super().draw(batch), words=self.mask(batch))

    def forward(
        self, pixels: Tensor, batch: ImageTextBatch, draws: Draws, memory: Memory, alpha: float
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            pixels: (B, 3, height, width), normalised.
            batch: Token ids, masks and sample ids.
            draws: Random choices.
            memory: Momentum tower, which has followed the online model already, and queue, which keeps this batch's
                features aside.
            alpha: Weight of soft labels.

        Returns:
            ``itc``, ``itm``, ``mlm``: scalars.
        """
        words = draws.words
        assert words is not None
        plain, masked = encode_both_texts(self.model, batch, words)
        image, pruning = self.pruned_image(pixels, self.guide(plain, masked), batch.draw_seeds)
        teacher = memory.teacher.model
        with torch.no_grad():
            plain_m, masked_m = encode_both_texts(teacher, batch, words)
            image_m = self.teach_image(teacher, pixels, pruning)
            told_m = teacher.fuse(masked_m, image_m).text.x[words.drawn_BL]
            momentum_scores_MV = teacher.word_scores(told_m)
        contrasted = contrast_of(self.model, image, plain, memory, image_m, plain_m, alpha)
        pool = self.pool(batch, plain, image)
        negatives = draws.negatives or self.hard_negatives(pool, contrasted, draws.chances_B3)
        logits_N2, told = self._match_and_tell(pool, negatives, masked)
        scores_MV = self.model.word_scores(told[words.drawn_BL])
        return {
            "itc": contrasted.loss,
            "itm": matching_loss(logits_N2, true_first(len(pixels), pixels.device)),
            "mlm": word_loss(scores_MV, words.target_M, momentum_scores_MV, alpha),
        }

    def _match_and_tell(self, pool: Pool, negatives: Negatives, masked: TokenStream) -> tuple[Tensor, Tensor]:
        """Pairs, their two kinds of negatives and the masked texts in one pass; images' keys are made once."""
        own = pool.own_B
        text = picked(pool.text, torch.cat([own, own, negatives.text_B]))
        assert text.present is not None and masked.present is not None
        text = TokenStream(torch.cat([text.x, masked.x]), torch.cat([text.present, masked.present]))
        fused = self.model.fuse(text, pool.shown(torch.cat([own, negatives.image_B, own, own])))
        pairs = 3 * len(own)
        return self.model.itm_head(fused.features_BF[:pairs]), fused.text.x[pairs:]


class BlipStep(OnlineModel):
    """BLIP's three losses."""

    def forward(
        self, pixels: Tensor, batch: ImageTextBatch, draws: Draws, memory: Memory, alpha: float
    ) -> dict[str, Tensor]:
        """``itc``, ``itm``, ``lm``; arguments as in `AlbefStep.forward`."""
        model = self.model
        assert isinstance(model, Blip)
        text = model.encode_text(batch.token_ids, batch.token_mask)
        image, pruning = self.pruned_image(pixels, self.guide(text), batch.draw_seeds)
        teacher = memory.teacher.model
        with torch.no_grad():
            text_m = teacher.encode_text(batch.token_ids, batch.token_mask)
            image_m = self.teach_image(teacher, pixels, pruning)
        contrasted = contrast_of(model, image, text, memory, image_m, text_m, alpha)
        pool = self.pool(batch, model.begin_fusion(text, batch.token_ids, batch.token_mask), image)
        negatives = draws.negatives or self.hard_negatives(pool, contrasted, draws.chances_B3)
        own = pool.own_B
        texts = picked(pool.text, torch.cat([own, own, negatives.text_B]))
        fused = model.fuse(texts, pool.shown(torch.cat([own, negatives.image_B, own])))
        told_BL = next_words(batch.token_mask)
        scores_MV = model.word_scores(model.decode(batch.token_ids, batch.token_mask, image)[told_BL])
        return {
            "itc": contrasted.loss,
            "itm": matching_loss(model.itm_head(fused.features_BF), true_first(len(pixels), pixels.device)),
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
        shown_B, true_B = self._replace(batch, draws)
        text = both(plain, masked)
        fused = self.model.fuse(text, self._images(pixels, text, shown_B, batch.draw_seeds))
        size = len(pixels)
        scores_MV = self.model.word_scores(fused.text.x[size:][words.drawn_BL])
        return {
            "itm": matching_loss(self.model.itm_head(fused.features_BF[:size]), true_B),
            "mlm": word_loss(scores_MV, words.target_M),
        }

    def _images(self, pixels: Tensor, text: TokenStream, shown_B: Tensor, seeds_B: Tensor) -> TokenStream:
        """The images that the plain texts are shown, then those of the masked texts."""
        size = len(pixels)
        everywhere = self.objectives.negatives == "global"
        if self.pruning.chosen is not None:
            # An image pruned by one text is not the image that another text would have left.
            shown = (gather_constant(pixels) if everywhere else pixels)[shown_B]
            return self.pruned_image(torch.cat([shown, pixels]), text, seeds_B.repeat(2))[0]
        image = self.model.encode_image(pixels)
        own = own_columns(size) if everywhere else slice(0, size)
        own_B = torch.arange(own.start, own.stop, device=pixels.device)
        x = gather_with_gradient(image.x) if everywhere else image.x
        return TokenStream(x, rows=torch.cat([shown_B, own_B]))

    def _replace(self, batch: ImageTextBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Row of the image that each text is shown, and whether it is its own."""
        everywhere = self.objectives.negatives == "global"
        samples_N = gather_constant(batch.sample_ids) if everywhere else batch.sample_ids
        own = own_columns(len(batch)) if everywhere else slice(0, len(batch))
        own_B = torch.arange(own.start, own.stop, device=samples_N.device)
        same_BN = batch.sample_ids[:, None] == samples_N[None]
        even_BN = torch.zeros(same_BN.shape, device=same_BN.device)
        others_B = draw_rows(negative_weights(even_BN, same_BN, own_B), draws.chances_B3[:, 0])
        true_B = draws.chances_B3[:, 2] < 0.5
        return torch.where(true_B, own_B, others_B), true_B


class ClipStep(OnlineModel):
    """CLIP's symmetric contrast over the global batch."""

    def forward(
        self, pixels: Tensor, batch: ImageTextBatch, draws: Draws, memory: None, alpha: float
    ) -> dict[str, Tensor]:
        """``itc``; arguments as in `AlbefStep.forward`, there is no memory."""
        text = self.model.encode_text(batch.token_ids, batch.token_mask)
        image, _ = self.pruned_image(pixels, self.guide(text), batch.draw_seeds)
        features = self.model.image_feature(image), self.model.text_feature(text)
        return {"itc": symmetric_contrast(*features, self.model.temp)}


STEPS: Mapping[BackboneName, Callable[..., OnlineModel]] = {
    "albef": AlbefStep,
    "blip": BlipStep,
    "meter": MeterStep,
    "clip": ClipStep,
}


def contrast_of(
    model: Backbone,
    image: TokenStream,
    text: TokenStream,
    memory: Memory,
    image_m: TokenStream,
    text_m: TokenStream,
    alpha: float,
) -> Contrast:
    """ITC of the encoded batch with the momentum tower's labels."""
    teacher = memory.teacher.model
    with torch.no_grad():
        image_m_BE, text_m_BE = teacher.image_feature(image_m), teacher.text_feature(text_m)
    image_BE, text_BE = model.image_feature(image), model.text_feature(text)
    return contrast(image_BE, text_BE, image_m_BE, text_m_BE, memory.queue, model.temp, alpha)


def encode_both_texts(model: Backbone, batch: ImageTextBatch, words: MaskedWords) -> tuple[TokenStream, TokenStream]:
    """The plain and the masked text through the text-only layers, in one pass."""
    ids, mask = torch.cat([batch.token_ids, words.ids_BL]), batch.token_mask.repeat(2, 1)
    encoded = model.encode_text(ids, mask)
    rows = torch.arange(len(ids), device=ids.device)
    return picked(encoded, rows[: len(batch)]), picked(encoded, rows[len(batch) :])


def both(first: TokenStream, second: TokenStream) -> TokenStream:
    """The rows of two text streams, one after the other."""
    assert first.present is not None and second.present is not None
    return TokenStream(torch.cat([first.x, second.x]), torch.cat([first.present, second.present]))


def picked(stream: TokenStream, rows: Tensor) -> TokenStream:
    """Chosen rows of a text stream."""
    assert stream.present is not None
    return TokenStream(stream.x[rows], stream.present[rows], causal=stream.causal)


def true_first(size: int, device: torch.device) -> Tensor:
    """(3 B,) labels of matching where the true pairs come before the two kinds of negatives."""
    return torch.arange(3 * size, device=device) < size


def _as_it_is(x: Tensor) -> Tensor:
    return x
