"""What text-guided pruning tells the training of what it should not know (METHODS.md section 1).

In pre-training an image is pruned by its own caption. So its feature in contrast, and its tokens where it stands as a
negative of matching, carry a trace of that caption, the word task sees tokens that the unmasked text has chosen, and a
decoder tokens that the caption which it shall tell has chosen. At retrieval time nothing of this holds. Measured on
held-out pairs, of a trained model: how much easier each task becomes.

B batch, N samples, L text tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.bootstrap import group_interval
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.schedule import TokenStream
from pipeline.objectives.itm import negative_weights
from pipeline.objectives.lm import next_words
from pipeline.objectives.mlm import Vocabulary, mask_words
from pipeline.pruning.config import PruningConfig
from pipeline.tasks.candidates import Candidates, picked

UNPRUNED, OWN, OTHER = "unpruned", "own caption", "another caption"
PAIRED, MASKED = "paired text", "masked caption"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A trained model and how it was pruned.

    Attributes:
        model: In evaluation mode.
        pruning: ELIP's, as in pre-training.
        words: Mask id and vocabulary size.
        mask_share: Probability that a word is masked.
        normalise: Maps uint8 pixels to the model's input.
    """

    model: Backbone
    pruning: PruningConfig
    words: Vocabulary
    mask_share: float
    normalise: Callable[[Tensor], Tensor]

    def image(self, pixels: Tensor, text: TokenStream | None, seeds_B: Tensor) -> TokenStream:
        """Images pruned by these texts; not pruned where there are none."""
        if text is None:
            return self.model.encode_image(pixels)
        pruning = self.pruning.begin(self.model.visual_encoder, self.model.sentence(text), seeds_B)
        assert pruning is not None
        return self.model.encode_image(pixels, [pruning])


@dataclass
class _Found:
    """Outcomes of single samples, by task, metric and what the images were pruned by."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    clusters: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    image_NE: dict[str, list[Tensor]] = field(default_factory=dict)
    text_NE: list[Tensor] = field(default_factory=list)

    def add(self, task: str, metric: str, by: str, values: Tensor, clusters: Sequence[str]) -> None:
        """Outcomes with what each depends on: clusters are resampled whole for intervals."""
        self.values.setdefault((task, metric, by), []).extend(values.double().tolist())
        self.clusters.setdefault((task, metric, by), []).extend(clusters)


@torch.no_grad()
def measure_leak(probe: Probe, batches: Iterable[ImageTextBatch]) -> list[Row]:
    """Rows {"task", "metric", "pruned_by", "value", "low", "high", "difference", ...} over all samples.

    Args:
        probe: Model and pruning.
        batches: Held-out pairs; negatives of matching are the most similar other caption of a batch.

    Returns:
        For each task and metric one row for each way of pruning. `difference` is from unpruned images, paired by
        sample, with its 95% interval; the own caption's row has `leak` besides, likewise from images pruned without a
        trace of it: what the caption tells apart from what pruning costs.

    Raises:
        UserError: The pruning is not guided by text, or there are fewer than two pairs.
    """
    if probe.pruning.chosen is not probe.pruning.elip:
        raise UserError("only text-guided pruning can leak: this run's pretrain.pruning is not elip")
    found = _Found()
    for batch in batches:
        if len(batch) > 1:
            _look(probe, batch, found)
    if not found.text_NE and not found.values:
        raise UserError("the split has fewer than two pairs; give a larger one")
    _rank(found)
    return _rows(found)


@dataclass(frozen=True)
class _Look:
    """A batch as the tasks look at it."""

    probe: Probe
    batch: ImageTextBatch
    pixels: Tensor
    text: TokenStream
    images: Mapping[str, TokenStream]


def _look(probe: Probe, batch: ImageTextBatch, found: _Found) -> None:
    model, pixels = probe.model, probe.normalise(batch.pixels)
    text = model.encode_text(batch.token_ids, batch.token_mask)
    others_B = Candidates.of(batch, False).next_other()
    images = {
        UNPRUNED: probe.image(pixels, None, batch.draw_seeds),
        OWN: probe.image(pixels, text, batch.draw_seeds),
        OTHER: probe.image(pixels, picked(text, others_B), batch.draw_seeds),
    }
    look = _Look(probe, batch, pixels, text, images)
    _survive(look, found)
    if model.has_contrast:
        for by, image in images.items():
            found.image_NE.setdefault(by, []).append(model.image_feature(image))
        found.text_NE.append(model.text_feature(text))
        found.pairs += batch.clusters
    if model.fusion_steps:
        _match(look, found)
    if model.config.backbone in ("albef", "meter"):
        _tell(look, found)
    if isinstance(model, Blip):
        _caption(model, look, found)


def _survive(look: _Look, found: _Found) -> None:
    """How many of the patches that the own caption keeps are kept in any case: what there is that could leak."""
    own_BN = look.images[OWN].origin
    assert own_BN is not None
    patches_BN = own_BN >= 0
    for by, image in look.images.items():
        assert image.origin is not None
        also_BN = (own_BN[:, :, None] == image.origin[:, None]).any(2) & patches_BN
        # With few patches left there may be none but merged ones.
        share_B = also_BN.sum(1) / patches_BN.sum(1).clamp(min=1)
        found.add("selection", "own patches kept", by, share_B, look.batch.clusters)


def _match(look: _Look, found: _Found) -> None:
    """Negatives' images pruned by their own caption, as in pre-training, or by the text they are shown with."""
    probe, batch, images, text = look.probe, look.batch, look.images, look.text
    model = probe.model
    wrong_B = _nearest_other(probe, batch, text, images[UNPRUNED])
    wrong = picked(text, wrong_B)
    paired = probe.image(look.pixels, wrong, batch.draw_seeds)
    starts = model.begin_fusion(text, batch.token_ids, batch.token_mask)
    shown = {UNPRUNED: images[UNPRUNED], OWN: images[OWN], PAIRED: paired}
    for by, image in shown.items():
        right_image = images[UNPRUNED] if by == UNPRUNED else images[OWN]
        right_B2 = model.itm_head(model.fuse(starts, right_image).features_BF)
        wrong_B2 = model.itm_head(model.fuse(picked(starts, wrong_B), image).features_BF)
        found.add("matching", "negatives told", by, (wrong_B2.argmax(1) == 0).float(), batch.clusters)
        loss_B = F.cross_entropy(wrong_B2, torch.zeros_like(wrong_B), reduction="none")
        found.add("matching", "loss of negatives", by, loss_B, batch.clusters)
        margin_B = (right_B2[:, 1] - right_B2[:, 0]) - (wrong_B2[:, 1] - wrong_B2[:, 0])
        found.add("matching", "pair above negative", by, (margin_B > 0).float(), batch.clusters)


def _tell(look: _Look, found: _Found) -> None:
    """Masked words with images pruned by the unmasked text, as in ALBEF's pre-training, or by the masked one."""
    probe, batch, images = look.probe, look.batch, look.images
    seeds_B = torch.arange(len(batch), device=look.pixels.device) + batch.sample_ids
    words = mask_words(batch.token_ids, batch.token_mask, seeds_B, probe.mask_share, probe.words)
    masked = probe.model.encode_text(words.ids_BL, batch.token_mask)
    shown = {
        UNPRUNED: images[UNPRUNED],
        OWN: images[OWN],
        MASKED: probe.image(look.pixels, masked, batch.draw_seeds),
    }
    starts = probe.model.begin_fusion(masked, words.ids_BL, batch.token_mask)
    clusters = [batch.clusters[row] for row in words.drawn_BL.nonzero()[:, 0].tolist()]
    for by, image in shown.items():
        told_MD = probe.model.fuse(starts, image).text.x[words.drawn_BL]
        _add_words(found, "masked words", by, probe.model.word_scores(told_MD), words.target_M, clusters)


def _caption(model: Blip, look: _Look, found: _Found) -> None:
    """Captions told from images pruned by themselves, as in BLIP's pre-training, or by another one."""
    batch = look.batch
    told_BL = next_words(batch.token_mask)
    target_M = batch.token_ids[told_BL.roll(1, 1)]
    clusters = [batch.clusters[row] for row in told_BL.nonzero()[:, 0].tolist()]
    for by, image in look.images.items():
        scores_MV = model.word_scores(model.decode(batch.token_ids, batch.token_mask, image)[told_BL])
        _add_words(found, "captions", by, scores_MV, target_M, clusters)


def _add_words(found: _Found, task: str, by: str, scores_MV: Tensor, target_M: Tensor, clusters: Sequence[str]) -> None:
    found.add(task, "loss", by, F.cross_entropy(scores_MV, target_M, reduction="none"), clusters)
    found.add(task, "right", by, (scores_MV.argmax(1) == target_M).float(), clusters)


def _nearest_other(probe: Probe, batch: ImageTextBatch, text: TokenStream, image: TokenStream) -> Tensor:
    """(B,) the other caption that is most like each image; the next other one where the model has no contrast."""
    candidates = Candidates.of(batch, False)
    if not probe.model.has_contrast:
        return candidates.next_other()
    similar_BB = probe.model.image_feature(image) @ probe.model.text_feature(text).T
    return negative_weights(similar_BB, candidates.same_BN, candidates.own_B).argmax(1)


def _rank(found: _Found) -> None:
    """Recall of each image's caption among all, and of each caption's image."""
    if not found.text_NE:
        return
    text_NE = torch.cat(found.text_NE)
    own_N1 = torch.arange(len(text_NE), device=text_NE.device)[:, None]
    for by, parts in found.image_NE.items():
        similar_NN = torch.cat(parts) @ text_NE.T
        for direction, scores in (("TR", similar_NN), ("IR", similar_NN.T)):
            # As everywhere, the first of equals comes first.
            order_NN = scores.sort(dim=1, descending=True, stable=True).indices
            rank_N = (order_NN == own_N1).int().argmax(1)
            for k in (1, 10):
                found.add("retrieval by contrast", f"{direction} R@{k}", by, (rank_N < k).float(), found.pairs)


def _rows(found: _Found) -> list[Row]:
    ways: dict[tuple[str, str], list[str]] = {}
    for task, metric, by in found.values:
        ways.setdefault((task, metric), []).append(by)
    rows = []
    for (task, metric), order in ways.items():
        (without,) = (by for by in order if by not in (UNPRUNED, OWN))
        for by in order:
            against = {"difference": UNPRUNED, **({"leak": without} if by == OWN else {})}
            rows.append(_row(found, task, metric, by, against))
    return rows


def _row(found: _Found, task: str, metric: str, by: str, against: Mapping[str, str]) -> Row:
    """One way of pruning: its value, and by name the difference from each of `against`."""
    values, items = found.values[task, metric, by], found.clusters[task, metric, by]
    scale = 1.0 if metric.startswith("loss") else 100.0
    row: Row = {"task": task, "metric": metric, "pruned_by": by, "samples": len(values)}
    interval = group_interval([scale * value for value in values], items)
    row |= {"value": interval.value, "low": interval.low, "high": interval.high}
    for name, other in against.items():
        pairs = zip(values, found.values[task, metric, other], strict=True)
        apart = group_interval([scale * (a - b) for a, b in pairs], items)
        row |= {name: apart.value, f"{name}_low": apart.low, f"{name}_high": apart.high}
    return row
