"""Matching of pairs with hard negatives (ALBEF, arXiv 2107.07651, section 3.2), in pre-training and for retrieval.

B batch of this process, N rows that negatives are drawn from, C rows of a chunk, E embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.data.seeds import uniforms
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.objectives.chunked import chunks
from pipeline.objectives.itc import similarity
from pipeline.objectives.itm import Negatives, draw_rows, negative_weights
from pipeline.tasks.candidates import Candidates, picked

# Tells the draws of negatives from those of masked words, which begin at the sample's own seed.
_NEGATIVES = 0x6E656761746976


def negative_chances(seeds_B: Tensor, count: int) -> Tensor:
    """(B, count) uniform numbers of each sample, for its negatives; the same in every layout of ranks."""
    return uniforms(seeds_B ^ _NEGATIVES, count)


def hard_negatives(
    candidates: Candidates,
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    temperature: Tensor,
    chances_B3: Tensor,
    chunk: int,
) -> Negatives:
    """Drawn in proportion to similarity.

    Args:
        candidates: That they are drawn from; processes must call this together where those are of all of them.
        queries: (B, E) unit features of images, and of texts, that ask.
        keys: (B, E) likewise of what is compared with, such as a momentum tower's.
        temperature: Of the similarities.
        chances_B3: From `negative_chances`.
        chunk: Rows whose similarities are held at a time.
    """
    image_NE, text_NE = (candidates.constant(each) for each in keys)
    drawn = []
    for way, (query_BE, key_NE) in enumerate([(queries[1], image_NE), (queries[0], text_NE)]):
        found = []
        for rows in chunks(len(query_BE), chunk):
            logits_CN = similarity(query_BE[rows], key_NE, temperature)
            weights_CN = negative_weights(logits_CN, candidates.same_BN[rows], candidates.own_B[rows])
            found.append(draw_rows(weights_CN, chances_B3[rows, way]))
        drawn.append(torch.cat(found))
    return Negatives(*drawn)


def matching_logits(
    model: Backbone,
    candidates: Candidates,
    text: TokenStream,
    image: TokenStream,
    negatives: Negatives,
    interventions: Sequence[Intervention] = (),
) -> Tensor:
    """(3 B, 2) of the pairs, of each text with its negative image, and of each image with its negative text.

    Keys and values of an image are made once for all of them.

    Args:
        model: Fuses and judges.
        candidates: That negatives are rows of.
        text: From `Backbone.begin_fusion`, of this process.
        image: From `Backbone.encode_image`, likewise.
        negatives: Of each row.
        interventions: Methods that act on the fusion layers.
    """
    own = candidates.own_B
    texts = picked(candidates.texts(text), torch.cat([own, own, negatives.text_B]))
    shown = candidates.shown(candidates.images(image), torch.cat([own, negatives.image_B, own]))
    logits_N2: Tensor = model.itm_head(model.fuse(texts, shown, interventions).features_BF)
    return logits_N2


def true_first(size: int, device: torch.device) -> Tensor:
    """(3 B,) labels of matching where the true pairs come before the two kinds of negatives."""
    return torch.arange(3 * size, device=device) < size
