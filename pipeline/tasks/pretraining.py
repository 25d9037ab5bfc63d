"""ALBEF's pre-training with pruning in the online vision tower: contrast, matching, masked words.

B batch of this process, L text tokens, N vision tokens, D width, V vocabulary, M masked positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch
from pipeline.limits import a_share, at_least
from pipeline.models.albef import Albef
from pipeline.models.schedule import TokenStream
from pipeline.objectives.itc import Contrast, FeatureQueue, contrast
from pipeline.objectives.itm import Negatives, draw_negatives, matching_loss
from pipeline.objectives.mlm import MaskedWords, Vocabulary, mask_words, word_loss
from pipeline.objectives.momentum import MomentumTower
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.intervention import Pruning, ReplayedPruning
from pipeline.tasks.task import Losses, with_prefix, without_prefix


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Constants of the three losses.

    Attributes:
        queue: Length of the feature queue.
        queue_start: Share of training from which the queue serves as keys. Features that change fast at first are told
            from older ones by their age alone, and nothing is learned (SwAV's queue starts late for the same reason).
        momentum: μ of the momentum tower.
        alpha: Weight of the momentum model's soft labels.
        alpha_ramp: Share of training over which `alpha` rises from 0 (ALBEF: its first epoch).
        mask_share: Probability that a word is masked.
        temperature_lr: Learning rate of the temperature over the model's; small models train at high rates, at which
            the temperature would run ahead of the features.
    """

    queue: int = 65536
    queue_start: float = 0.0
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp: float = 1 / 30
    mask_share: float = 0.15
    temperature_lr: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, "objectives", 0, "queue", "temperature_lr")
        a_share(self, "objectives", "queue_start", "momentum", "alpha", "alpha_ramp", "mask_share")


@dataclass(frozen=True)
class Draws:
    """Random choices of a step; recorded ones can be put in to repeat it."""

    words: MaskedWords
    negatives: Negatives | None = None


@dataclass(frozen=True)
class Online:
    """What the online towers computed, for the losses and the momentum tower."""

    image: TokenStream
    plain: TokenStream
    masked: TokenStream
    pruning: Pruning | None


class AlbefPretraining:
    """Task: the online model in `module`, momentum tower and queue beside it.

    Args:
        model: The online model.
        objectives: Constants.
        pruning: Of the online tower (and of the momentum tower if it says so).
        words: Mask id and vocabulary size.
        normalise: Maps uint8 pixels to the model's input.
        generator: Draws the queue's first content.
    """

    def __init__(
        self,
        model: Albef,
        objectives: ObjectiveConfig,
        pruning: PruningConfig,
        words: Vocabulary,
        normalise: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        pruning.check(model.config.vision.depth, model.config.vision.patches)
        self.module: nn.Module = OnlineAlbef(model, objectives, pruning)
        self.model = model
        self.objectives = objectives
        self.words = words
        self.normalise = normalise
        self.teacher = MomentumTower(model, objectives.momentum)
        self.queue = FeatureQueue(model.config.embed, objectives.queue, generator, model.temp.device)

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """The online model's three losses with the momentum model's labels."""
        ramp = self.objectives.alpha_ramp
        alpha = self.objectives.alpha * (min(1.0, progress / ramp) if ramp else 1.0)
        share = self.objectives.mask_share
        draws = Draws(mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, share, self.words))
        named = forward(self.normalise(batch.pixels), batch, self.teacher, self.queue, alpha, draws)
        total = named["itc"] + named["itm"] + named["mlm"]
        return Losses(total, named, {"temperature": self.model.temp.detach().clone().squeeze(), "alpha": alpha})

    def before_update(self, progress: float) -> None:
        """The momentum tower follows the online model."""
        self.queue.active = progress >= self.objectives.queue_start
        self.teacher.update(self.model)

    def after_update(self, progress: float) -> None:
        """The queue takes the features of the whole update."""
        self.queue.take()

    def tensors(self) -> dict[str, Tensor]:
        """Momentum tower and queue."""
        return with_prefix("momentum", self.teacher.tensors()) | with_prefix("queue", self.queue.tensors())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take momentum tower and queue."""
        self.teacher.load(without_prefix("momentum", tensors))
        self.queue.load(without_prefix("queue", tensors))


class OnlineAlbef(nn.Module):
    """Forward of one pre-training step, from pixels to named losses.

    Args:
        model: The online model.
        objectives: Constants.
        pruning: Of the vision tower.
    """

    def __init__(self, model: Albef, objectives: ObjectiveConfig, pruning: PruningConfig) -> None:
        super().__init__()
        self.model = model
        self.pruning = pruning
        self.objectives = objectives

    def forward(
        self,
        pixels: Tensor,
        batch: ImageTextBatch,
        teacher: MomentumTower,
        queue: FeatureQueue,
        alpha: float,
        draws: Draws,
    ) -> dict[str, Tensor]:
        """The reference's step between its momentum update and its writing of the queue.

        Args:
            pixels: (B, 3, height, width), normalised.
            batch: Token ids, masks and sample ids.
            teacher: Momentum tower, which has followed the online model already.
            queue: Momentum features of earlier updates; keeps this one's aside.
            alpha: Weight of soft labels.
            draws: Masked words, and negatives if they are given.

        Returns:
            ``itc``, ``itm``, ``mlm``: scalars.
        """
        online = self._encode(pixels, batch, draws.words)
        contrasted, momentum_scores_MV = self._teach(pixels, batch, online, teacher, queue, alpha, draws.words)
        negatives = draws.negatives or self._negatives(batch, contrasted)
        fused = self._fuse(online, negatives)
        matched, masked = fused.cls[: 3 * len(pixels)], fused.x[3 * len(pixels) :]
        scores_MV = self.model.text_encoder.word_scores(masked[draws.words.drawn_BL])
        return {
            "itc": contrasted.loss,
            "itm": matching_loss(self.model.itm_head(matched)),
            "mlm": word_loss(scores_MV, draws.words.target_M, momentum_scores_MV, alpha),
        }

    def _encode(self, pixels: Tensor, batch: ImageTextBatch, words: MaskedWords) -> Online:
        plain, masked = encode_both_texts(self.model, batch, words)
        pruning = self.pruning.begin(self.model.visual_encoder, plain.cls, batch.draw_seeds)
        image = self.model.encode_image(pixels, [] if pruning is None else [pruning])
        return Online(image, plain, masked, pruning)

    @torch.no_grad()
    def _momentum_words(self, model: Albef, masked: TokenStream, image: TokenStream, words: MaskedWords) -> Tensor:
        fused = model.fuse(masked, image)
        return model.text_encoder.word_scores(fused.x[words.drawn_BL])

    def _teach(
        self,
        pixels: Tensor,
        batch: ImageTextBatch,
        online: Online,
        teacher: MomentumTower,
        queue: FeatureQueue,
        alpha: float,
        words: MaskedWords,
    ) -> tuple[Contrast, Tensor]:
        model = teacher.model
        replay = [ReplayedPruning(online.pruning)] if self.pruning.prune_momentum and online.pruning else []
        with torch.no_grad():
            plain_m, masked_m = encode_both_texts(model, batch, words)
            image_m = model.encode_image(pixels, replay)
            image_feature_m, text_feature_m = model.image_feature(image_m), model.text_feature(plain_m)
        contrasted = contrast(
            self.model.image_feature(online.image),
            self.model.text_feature(online.plain),
            image_feature_m,
            text_feature_m,
            queue,
            self.model.temp,
            alpha,
        )
        return contrasted, self._momentum_words(model, masked_m, image_m, words)

    def _negatives(self, batch: ImageTextBatch, contrasted: Contrast) -> Negatives:
        same_words = (batch.token_ids[:, None] == batch.token_ids[None]).all(-1)
        same_image = batch.sample_ids[:, None] == batch.sample_ids[None]
        return draw_negatives(contrasted.image_to_text_BB, contrasted.text_to_image_BB, same_words | same_image)

    def _fuse(self, online: Online, negatives: Negatives) -> TokenStream:
        """Pairs, their two kinds of negatives and the masked texts in one pass; images' keys are made once."""
        own = torch.arange(len(online.plain.x), device=online.plain.x.device)
        text_rows = torch.cat([own, own, negatives.text_B])
        image_rows = torch.cat([own, negatives.image_B, own, own])
        assert online.plain.present is not None and online.masked.present is not None
        text = TokenStream(
            torch.cat([online.plain.x[text_rows], online.masked.x]),
            torch.cat([online.plain.present[text_rows], online.masked.present]),
        )
        return self.model.fuse(text, replace(online.image, rows=image_rows))


def encode_both_texts(model: Albef, batch: ImageTextBatch, words: MaskedWords) -> tuple[TokenStream, TokenStream]:
    """The plain and the masked text through the text-only layers, in one pass."""
    ids, mask = torch.cat([batch.token_ids, words.ids_BL]), batch.token_mask.repeat(2, 1)
    both = model.encode_text(ids, mask)
    assert both.present is not None
    size = len(batch.token_ids)
    plain = TokenStream(both.x[:size], both.present[:size])
    return plain, TokenStream(both.x[size:], both.present[size:])
