"""Image-text retrieval: ranking by the contrastive features, then matching scores of the best k.

I images, T texts, K re-ranked candidates, E embedding width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.models.albef import Albef
from pipeline.models.schedule import TokenStream

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Encoded:
    """One image and one text per row, each encoded once; row i of both belong together.

    Attributes:
        image: Image tokens and features of unit length.
        text: Text tokens and features of unit length.
    """

    image: TokenStream
    text: TokenStream
    image_IE: Tensor
    text_TE: Tensor


@torch.no_grad()
def encode_pairs(model: Albef, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Encoded:
    """Encode without any text looking at an image: as a search engine would, unpruned."""
    image, text = model.encode_image(pixels), model.encode_text(ids_BL, mask_BL)
    return Encoded(image, text, model.image_feature(image), model.text_feature(text))


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
def matching_scores(model: Albef, encoded: Encoded, text_rows: Tensor, image_rows: Tensor) -> Tensor:
    """Matching logit (class 1 minus class 0) of chosen (text, image) pairs, in blocks of bounded size."""
    scores = []
    assert encoded.text.present is not None
    for texts, images in zip(text_rows.split(ROWS_AT_ONCE), image_rows.split(ROWS_AT_ONCE), strict=True):
        distinct, rows = images.unique(return_inverse=True)
        image = replace(encoded.image, x=encoded.image.x[distinct], rows=rows)
        text = TokenStream(encoded.text.x[texts], encoded.text.present[texts])
        logits_B2 = model.itm_head(model.fuse(text, image).cls)
        scores.append(logits_B2[:, 1] - logits_B2[:, 0])
    return torch.cat(scores)


def rerank(model: Albef, encoded: Encoded, top: int) -> tuple[Tensor, Tensor]:
    """Rank of the right text for each image, and of the right image for each text, from 0.

    Args:
        model: In evaluation mode.
        encoded: All pairs.
        top: K; candidates beyond it keep their contrastive order behind the re-ranked ones.

    Returns:
        (I,) and (T,) ranks.
    """
    similarity_IT = encoded.image_IE @ encoded.text_TE.T
    size, top = len(similarity_IT), min(top, len(similarity_IT))
    ranks = []
    for direction in (similarity_IT, similarity_IT.T):
        order = direction.sort(dim=1, descending=True, stable=True).indices
        asked = torch.arange(size, device=order.device).repeat_interleave(top)
        found = order[:, :top].flatten()
        images, texts = (asked, found) if direction is similarity_IT else (found, asked)
        scores = matching_scores(model, encoded, texts, images).view(size, top)
        best = order[:, :top].gather(1, scores.sort(dim=1, descending=True, stable=True).indices)
        final = torch.cat([best, order[:, top:]], 1)
        ranks.append((final == torch.arange(size, device=order.device)[:, None]).int().argmax(1))
    return ranks[0], ranks[1]


def recalls(ranks: Tensor) -> dict[str, list[float]]:
    """``R@1``, ``R@5``, ``R@10``: for each query 1 where the right answer is among the first k."""
    return {f"R@{k}": (ranks < k).float().tolist() for k in (1, 5, 10)}
