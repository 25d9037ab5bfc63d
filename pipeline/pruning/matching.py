"""ToMe's bipartite matching and merging (arXiv 2210.09461, section 3), as functions of tensors with no model in them.

B batch, N tokens with the class token first, E tokens at even positions, O at odd ones, R merged tokens,
U = E - R even tokens that stay, D width, d width of what tokens are compared by.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.precision import at_least_float32


@dataclass(frozen=True)
class Matching:
    """Which even token goes into which odd one.

    Attributes:
        source_BR: Numbers of the even tokens that go, of largest similarity first.
        target_BR: Number of the odd token that each one goes into; several may go into one.
        rest_BU: Numbers of the even tokens that stay, rising; the first is the class token.
    """

    source_BR: Tensor
    target_BR: Tensor
    rest_BU: Tensor


def match(metric_BNd: Tensor, merged: int) -> Matching:
    """Pair the even with the odd tokens and choose the most similar pairs.

    Each even token is paired with the odd one of largest cosine similarity; ties go to the lower position. The class
    token is even and is never paired. No gradient flows through a matching.

    Args:
        metric_BNd: What tokens are compared by: their keys, averaged over heads.
        merged: R, at most (N - 1) // 2.

    Returns:
        The matching.

    Raises:
        ValueError: `merged` is not between 1 and (N - 1) // 2.
    """
    tokens = metric_BNd.shape[1]
    if not 0 < merged <= (tokens - 1) // 2:
        raise ValueError(f"merged={merged} of {tokens} tokens must lie between 1 and {(tokens - 1) // 2}")
    with torch.no_grad(), torch.autocast(metric_BNd.device.type, enabled=False):
        metric_BNd = F.normalize(at_least_float32(metric_BNd), dim=-1)
        similarity_BEO = metric_BNd[:, ::2] @ metric_BNd[:, 1::2].transpose(1, 2)
        best_BE, partner_BE = similarity_BEO.max(-1)
        # The class token comes last in the order, so it always stays: R is less than E.
        best_BE = torch.cat([torch.full_like(best_BE[:, :1], -torch.inf), best_BE[:, 1:]], 1)
        order_BE = best_BE.sort(dim=1, descending=True, stable=True).indices
        source_BR = order_BE[:, :merged]
        return Matching(source_BR, partner_BE.gather(1, source_BR), order_BE[:, merged:].sort(dim=1).values)


def apply_matching(x_BND: Tensor, size_BN: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Merge by averages that weigh each token with what it stands for.

    The even tokens that stay come first, then the odd ones: the order of the authors' code, on which it depends who is
    even in the next layer.

    Args:
        x_BND: The tokens.
        size_BN: How many tokens each one stands for; None where each stands for itself.
        matching: Made by `match` for these N tokens.

    Returns:
        (B, N - R, D) tokens in the type of `x_BND`, and (B, N - R) sizes.
    """
    wide_BND = at_least_float32(x_BND)
    size_BN = torch.ones_like(wide_BND[..., 0]) if size_BN is None else size_BN
    into_BOR = _into(matching, x_BND.shape[1] // 2).to(wide_BND.dtype)
    moved_BR1, size_BO1 = size_BN[:, ::2].gather(1, matching.source_BR)[..., None], size_BN[:, 1::2, None]
    # A batched product and not `scatter_add`: on a GPU the latter adds in whatever order, and no run could be repeated.
    with torch.autocast(x_BND.device.type, enabled=False):
        total_BO1 = size_BO1 + into_BOR @ moved_BR1
        sum_BOD = size_BO1 * wide_BND[:, 1::2] + into_BOR @ (moved_BR1 * _rows(wide_BND[:, ::2], matching.source_BR))
    merged_BND = torch.cat([_rows(wide_BND[:, ::2], matching.rest_BU), sum_BOD / total_BO1], 1)
    sizes_BN = torch.cat([size_BN[:, ::2].gather(1, matching.rest_BU), total_BO1[..., 0]], 1)
    return merged_BND.to(x_BND.dtype), sizes_BN


def match_origin(origin_BN: Tensor, matching: Matching, merged_as: int) -> Tensor:
    """Follow where tokens came from: as `apply_matching`, with code `merged_as` for those that took others in."""
    odd_BO = origin_BN[:, 1::2]
    took_BO = _into(matching, odd_BO.shape[1]).any(2)
    return torch.cat([origin_BN[:, ::2].gather(1, matching.rest_BU), odd_BO.masked_fill(took_BO, merged_as)], 1)


def _into(matching: Matching, odd: int) -> Tensor:
    """(B, O, R) True where a merged token goes."""
    number_O = torch.arange(odd, device=matching.target_BR.device)
    return matching.target_BR[:, None] == number_O[:, None]


def _rows(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """(B, K, D) the tokens at these numbers."""
    return x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[-1]))
