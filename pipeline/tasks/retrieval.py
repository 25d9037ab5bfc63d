"""Image-text retrieval as it is reported: ranking by the contrastive features, then matching scores of the best k.

Each text asks for its image among all images; each image that has texts asks for any of them among all texts. CLIP has
no matching: its features rank alone. METER has no contrast: every pair is matched. An image is matched by the rank that
has its tokens. Of similarities no more is held than a strip of `STRIP` numbers, of matching no more than a pass of
`ROWS_AT_ONCE` pairs, and the scores of the pairs that were matched.

I images, T texts, D width, E embedding width, Q queries, C candidates, K re-ranked candidates, P pairs, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.gathering import assemble, dealt, places_of, total
from pipeline.metrics.ranks import Right, ahead, best_right, ranks_among, ranks_of, reranked, top_among
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import TokenStream
from pipeline.process import Process
from pipeline.tasks.gallery import Gallery, Methods, check_finite, score_type

RERANKED = 128
"""Candidates that matching ranks again, where nobody says how many (ALBEF, BLIP)."""

ROWS_AT_ONCE = 256
"""Pairs that are fused at once."""

STRIP = 1 << 25
"""Similarities that are held at once: some queries with all candidates."""

PART = 1 << 19
"""Of these, how many are looked through at once: they are gone through several times, from the processor's cache."""


class Ranks(NamedTuple):
    """Ranks from 0: of the best own text for each image of `Gallery.asking`, and of its image for each text."""

    image_Q: Tensor
    text_T: Tensor


def rank_split(model: Backbone, gallery: Gallery, top: int, process: Process, methods: Methods = list) -> Ranks:
    """Ranks of the right answers, both ways; on every rank the same.

    Args:
        model: In evaluation mode.
        gallery: The encoded split.
        top: K; candidates beyond it keep their contrastive order behind the re-ranked ones. 0 ranks by contrast
            alone. Where there is no contrast every pair is matched, where there is no fusion none.
        process: This rank.
        methods: What trims pairs, where what is in the gallery was trimmed so.

    Raises:
        UserError: A score is not finite.
    """
    if not model.has_contrast:
        return _rank_all_pairs(model, gallery, process, methods)
    matching = top if matches(model, top) else 0
    texts_T = torch.arange(len(gallery.owner_T), device=gallery.owner_T.device)
    by_image = contrast(gallery.image_IE, gallery.text_TE, gallery.asking, gallery.texts_of, matching, process)
    by_text = contrast(gallery.text_TE, gallery.image_IE, texts_T, gallery.image_of, matching, process)
    if not matching:
        return Ranks(by_image.rank_Q, by_text.rank_Q)
    pairs = _matched_pairs(model, gallery, by_image, by_text, process, methods)
    return Ranks(
        reranked(by_image.rank_Q, *pairs.of(gallery.asking[:, None], by_image.found_QK)),
        reranked(by_text.rank_Q, *pairs.of(by_text.found_QK, texts_T[:, None])),
    )


def matches(model: Backbone, top: int) -> bool:
    """Whether `rank_split` matches pairs: all of them without contrast, else those that it re-ranks by fusion."""
    return bool(model.fusion_steps) and (top > 0 or not model.has_contrast)


class Contrast(NamedTuple):
    """Of each query the rank of the best right candidate by features, and the K best candidates in no order."""

    rank_Q: Tensor
    found_QK: Tensor


def contrast(
    query: Tensor,
    candidate_CE: Tensor,
    rows_Q: Tensor,
    right: Callable[[Tensor], Right],
    top: int,
    process: Process,
) -> Contrast:
    """Ranks by features, strip by strip: some queries with all candidates.

    Args:
        query: (., E) features, of which `rows_Q` ask.
        candidate_CE: Features.
        rows_Q: Which rows ask.
        right: (Q',) of those rows -> which candidates are right.
        top: K, as far as there are so many.
        process: This rank.
    """
    top = min(top, len(candidate_CE))
    size, part = (max(1, numbers // len(candidate_CE)) for numbers in (STRIP, PART))
    blocks = list(dealt(len(rows_Q), size, process))
    own = sum(block.stop - block.start for block in blocks)
    # Filled in place: small results that are kept between large ones that are freed would leave holes in memory.
    rank_O, found_OK, at = rows_Q.new_empty(own), rows_Q.new_empty(own, top, dtype=torch.int32), 0
    for block in blocks:
        with torch.autocast(query.device.type, enabled=False):  # 8 bits of a product would tie what differs
            scores_QC = query[rows_Q[block]] @ candidate_CE.T
        for scores, rows in zip(scores_QC.split(part), rows_Q[block].split(part), strict=True):
            belonging, here = right(rows), slice(at, at := at + len(rows))
            rank_O[here] = ranks_among(scores, belonging)
            if top:
                found_OK[here] = top_among(scores, belonging, top).int()
    places = places_of(blocks, rows_Q.device)
    rank_Q = assemble(process, rank_O, places, len(rows_Q))
    found_QK = assemble(process, found_OK, places, len(rows_Q)) if top else rows_Q.new_empty(len(rows_Q), 0)
    return Contrast(rank_Q, found_QK)


@dataclass(frozen=True)
class _Pairs:
    """Matching scores of chosen pairs.

    Attributes:
        key_P: image * T + text, rising.
        score_P: Their scores.
        owner_T: The number of each text's image.
    """

    key_P: Tensor
    score_P: Tensor
    owner_T: Tensor

    def of(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, K) scores of pairs that were chosen, and which belong together; image and text numbers broadcast."""
        keys = images.long() * len(self.owner_T) + texts  # of a large split beyond 32 bits
        return self.score_P[torch.searchsorted(self.key_P, keys)], self.owner_T[texts.long()] == images


def _matched_pairs(
    model: Backbone, gallery: Gallery, by_image: Contrast, by_text: Contrast, process: Process, methods: Methods
) -> _Pairs:
    """The pairs that either direction re-ranks, each matched once."""
    count = len(gallery.owner_T)
    texts_T = torch.arange(count, device=gallery.owner_T.device)
    asked_by_image = gallery.asking[:, None] * count + by_image.found_QK
    asked_by_text = by_text.found_QK.long() * count + texts_T[:, None]
    key_P = torch.cat([asked_by_image.flatten(), asked_by_text.flatten()]).unique()
    begins = torch.searchsorted(key_P, torch.arange(len(gallery.images) + 1, device=key_P.device) * count).tolist()
    numbers = sorted(gallery.tokens)
    texts_of = {n: key_P[begins[n] : begins[n + 1]] - n * count for n in numbers}
    scores = [_pair_scores(model, gallery, n, texts_P, methods) for n, texts_P in texts_of.items()]
    places = places_of((slice(begins[n], begins[n + 1]) for n in numbers), key_P.device)
    none = key_P.new_empty(0, dtype=score_type(model))
    score_P = assemble(process, torch.cat([none, *scores]), places, len(key_P))
    check_finite(score_P.isfinite(), lambda at: gallery.images[int(key_P[at]) // count].key, "matching scores")
    return _Pairs(key_P, score_P, gallery.owner_T)


def _pair_scores(model: Backbone, gallery: Gallery, image: int, texts_P: Tensor, methods: Methods) -> Tensor:
    """(P,) what candidates are re-ranked by."""
    score_P = matching_scores(model, gallery, image, texts_P, methods)
    if not model.ranks_with_similarity:
        return score_P
    # Not one product, whose rounding depends on how many there are.
    return score_P + (gallery.text_TE[texts_P] * gallery.image_IE[image]).sum(1)


@torch.no_grad()
def matching_scores(model: Backbone, gallery: Gallery, image: int, texts_P: Tensor, methods: Methods = list) -> Tensor:
    """(P,) matching scores (`Backbone.match_score`) of an image of this rank with texts.

    An image's pairs are fused apart from others', so that it is the same whichever images a rank has.
    """
    assert gallery.text is not None and gallery.text.present is not None
    scores = [texts_P.new_empty(0, dtype=score_type(model))]
    # Its keys and values serve all blocks; where heads are trimmed each block has its own that work.
    alone = replace(gallery.tokens[image], memo=None if methods() else {})
    for texts in texts_P.split(ROWS_AT_ONCE):
        text = TokenStream(gallery.text.x[texts], gallery.text.present[texts])
        fused = model.fuse(text, replace(alone, rows=torch.zeros_like(texts)), methods())
        scores.append(model.match_score(fused.features_BF))
    return torch.cat(scores)


def _rank_all_pairs(model: Backbone, gallery: Gallery, process: Process, methods: Methods) -> Ranks:
    """Every image of this rank with every text; what texts rank by adds up over ranks."""
    device, numbers = gallery.owner_T.device, sorted(gallery.tokens)
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    every = torch.arange(len(gallery.owner_T), device=device)
    rows = [matching_scores(model, gallery, number, every, methods) for number in numbers]
    score_CT = torch.stack(rows) if rows else torch.empty(0, len(every), device=device, dtype=score_type(model))
    sound = assemble(process, score_CT.isfinite().all(1), mine, len(gallery.images))
    check_finite(sound, lambda at: gallery.images[at].key, "matching scores")
    right_CT = gallery.texts_right_for(mine)
    ranks_I = assemble(process, ranks_of(score_CT, right_CT), mine, len(gallery.images))[gallery.asking]
    own = right_CT.any(0)
    best = best_right(score_CT.T[own], right_CT.T[own]) if rows else score_CT.new_empty(0)
    best_T = assemble(process, best, own.nonzero()[:, 0], len(every))
    return Ranks(ranks_I, total(process, ahead(score_CT.T, right_CT.T, best_T)))


def pair_score(model: Backbone, pixels: Tensor, ids_1L: Tensor, mask_1L: Tensor) -> Tensor:
    """(1,) what one image and one text take from pixels and tokens to the score that ranks them last."""
    image, text = model.encode_image(pixels), model.encode_text(ids_1L, mask_1L)
    scores = [(model.image_feature(image) * model.text_feature(text)).sum(-1)] if model.has_contrast else []
    if model.fusion_steps:
        fused = model.fuse(model.begin_fusion(text, ids_1L, mask_1L), image)
        scores.append(model.match_score(fused.features_BF))
    return scores[-1]


def matching_parts(model: Backbone) -> nn.Module:
    """What a pair costs beyond the layers, as linear maps: contrast's projections and matching's head."""
    parts: list[nn.Module] = [model.itm_head] if model.fusion_steps else []
    return nn.ModuleList(parts + ([model.vision_proj, model.text_proj] if model.has_contrast else []))
