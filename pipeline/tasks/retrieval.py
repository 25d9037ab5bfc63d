"""Image-text retrieval: ranking by the contrastive features, then matching scores of the best k.

CLIP has no matching: its features rank alone. METER has no contrast: every pair is matched.

I images, T texts, K re-ranked candidates, E embedding width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.models.schedule import TokenStream

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Encoded:
    """One image and one text per row, each encoded once; row i of both belong together.

    Attributes:
        image: Image tokens.
        text: Text tokens as fusion begins with them.
        image_IE: Features of unit length; without columns where the model has none.
        text_TE: Likewise.
    """

    image: TokenStream
    text: TokenStream
    image_IE: Tensor
    text_TE: Tensor


@torch.no_grad()
def encode_pairs(model: Backbone, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Encoded:
    """Encode without any text looking at an image: as a search engine would, unpruned."""
    image, text = model.encode_image(pixels), model.encode_text(ids_BL, mask_BL)
    none = pixels.new_zeros(len(pixels), 0)
    features = (model.image_feature(image), model.text_feature(text)) if model.has_contrast else (none, none)
    return Encoded(image, model.begin_fusion(text, ids_BL, mask_BL), *features)


def join(parts: list[Encoded]) -> Encoded:
    """Batches of rows, one after the other."""

    def stream(of: list[TokenStream]) -> TokenStream:
        present = None if of[0].present is None else torch.cat([s.present for s in of if s.present is not None])
        return TokenStream(torch.cat([s.x for s in of]), present)

    return Encoded(
        stream([p.image for p in parts]),
        stream([p.text for p in parts]),
        torch.cat([p.image_IE for p in parts]),
        torch.cat([p.text_TE for p in parts]),
    )


@torch.no_grad()
def matching_scores(model: Backbone, encoded: Encoded, text_rows: Tensor, image_rows: Tensor) -> Tensor:
    """Matching logit (class 1 minus class 0) of chosen (text, image) pairs, in blocks of bounded size."""
    scores = []
    assert encoded.text.present is not None
    for texts, images in zip(text_rows.split(ROWS_AT_ONCE), image_rows.split(ROWS_AT_ONCE), strict=True):
        distinct, rows = images.unique(return_inverse=True)
        image = replace(encoded.image, x=encoded.image.x[distinct], rows=rows)
        text = TokenStream(encoded.text.x[texts], encoded.text.present[texts])
        logits_B2 = model.itm_head(model.fuse(text, image).features_BF)
        scores.append(logits_B2[:, 1] - logits_B2[:, 0])
    return torch.cat(scores)


def rerank(model: Backbone, encoded: Encoded, top: int) -> tuple[Tensor, Tensor]:
    """Rank of the right text for each image, and of the right image for each text, from 0.

    Args:
        model: In evaluation mode.
        encoded: All pairs.
        top: K; candidates beyond it keep their contrastive order behind the re-ranked ones. Where there is no contrast
            every pair is matched, where there is no fusion none.

    Returns:
        (I,) and (T,) ranks.
    """
    similarity_IT = encoded.image_IE @ encoded.text_TE.T if model.has_contrast else _every_pair(model, encoded)
    size = len(similarity_IT)
    top = min(top, size) if model.has_contrast and model.fusion_steps else 0
    ranks = []
    for direction in (similarity_IT, similarity_IT.T):
        order = direction.sort(dim=1, descending=True, stable=True).indices
        final = order if top == 0 else _matched(model, encoded, order, top, direction is similarity_IT)
        ranks.append((final == torch.arange(size, device=order.device)[:, None]).int().argmax(1))
    return ranks[0], ranks[1]


def _every_pair(model: Backbone, encoded: Encoded) -> Tensor:
    """(I, T) matching scores of all pairs."""
    size = len(encoded.image.x)
    images = torch.arange(size, device=encoded.image.x.device).repeat_interleave(size)
    texts = torch.arange(size, device=images.device).repeat(size)
    return matching_scores(model, encoded, texts, images).view(size, size)


def _matched(model: Backbone, encoded: Encoded, order: Tensor, top: int, by_image: bool) -> Tensor:
    """An order of candidates (one row a query) with its first `top` sorted by matching."""
    size = len(order)
    asked = torch.arange(size, device=order.device).repeat_interleave(top)
    found = order[:, :top].flatten()
    images, texts = (asked, found) if by_image else (found, asked)
    scores = matching_scores(model, encoded, texts, images).view(size, top)
    best = order[:, :top].gather(1, scores.sort(dim=1, descending=True, stable=True).indices)
    return torch.cat([best, order[:, top:]], 1)


def matching_parts(model: Backbone) -> nn.Module:
    """What a pair costs beyond the layers, as linear maps: contrast's projections and matching's head."""
    parts: list[nn.Module] = [model.itm_head] if model.fusion_steps else []
    return nn.ModuleList(parts + ([model.vision_proj, model.text_proj] if model.has_contrast else []))


def recalls(ranks: Tensor) -> dict[str, list[float]]:
    """``R@1``, ``R@5``, ``R@10``: for each query 1 where the right answer is among the first k."""
    return {f"R@{k}": (ranks < k).float().tolist() for k in (1, 5, 10)}
