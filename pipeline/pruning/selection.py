"""Selecting and merging tokens, as functions of tensors with no model in them.

B batch, n tokens beside the class token, N = n + 1, K kept tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MERGE_EPS = 1e-6


@dataclass(frozen=True)
class Selection:
    """Which tokens a stage keeps and how it merges the others.

    Attributes:
        kept_BK: Positions among the n tokens beside CLS, rising.
        weight_Bn: Weight of each token in the merged one, 0 for kept tokens; None where nothing is merged.
        present_BK: Which of the kept tokens are there, with the merged one last if there is any; None where all are.
    """

    kept_BK: Tensor
    weight_Bn: Tensor | None
    present_BK: Tensor | None = None


def select(score_Bn: Tensor, keep: int, merge: bool = True, present_Bn: Tensor | None = None) -> Selection:
    """Keep the tokens of largest score (ELIP, arXiv 2309.16738, section 3).

    Ties go to the lower position. No gradient flows through a selection.

    Args:
        score_Bn: Attention of CLS to each token, 0 where none is there.
        keep: K, less than n. An instance of which no more than K are there keeps them all and merges none.
        merge: Whether the others will be merged into one token.
        present_Bn: 1 or True where a token is there; None where all are.

    Returns:
        The selection.

    Raises:
        ValueError: `keep` is not below the number of tokens.
    """
    score_Bn = score_Bn.detach()
    if present_Bn is None:
        kept_BK, there_BK = largest(score_Bn, keep), None
    else:
        kept_BK = largest(score_Bn.masked_fill(~present_Bn.bool(), -1.0), keep)
        there_BK = present_Bn.gather(1, kept_BK)
    if not merge:
        return Selection(kept_BK, None, there_BK)
    left_Bn = score_Bn.scatter(1, kept_BK, 0.0)
    if present_Bn is None or there_BK is None:
        return Selection(kept_BK, left_Bn / (left_Bn.sum(1, keepdim=True) + MERGE_EPS))
    if present_Bn.is_floating_point():
        left_Bn = left_Bn * present_Bn  # of value 1, but with the gradient of whoever decided that it stays
    merged_B = (present_Bn.detach().sum(1) > keep).to(there_BK.dtype)
    weight_Bn = left_Bn / (left_Bn.sum(1, keepdim=True) + MERGE_EPS)
    return Selection(kept_BK, weight_Bn, torch.cat([there_BK, merged_B[:, None]], 1))


def select_attentive(score_Bn: Tensor, keep: int, fuse: bool = True) -> Selection:
    """Keep the tokens of largest attention and fuse the others (EViT, arXiv 2202.07800, section 3.2).

    Unlike ELIP's, the fused token is the plain sum of attention times token, and its weights carry a gradient.

    Args:
        score_Bn: Attention of CLS to each token.
        keep: K, less than n.
        fuse: Whether the others will be fused into one token.

    Returns:
        The selection.

    Raises:
        ValueError: `keep` is not below the number of tokens.
    """
    kept_BK = largest(score_Bn.detach(), keep)
    return Selection(kept_BK, score_Bn.scatter(1, kept_BK, 0.0) if fuse else None)


def largest(score_Bn: Tensor, keep: int) -> Tensor:
    """(B, K) positions of the `keep` largest scores, rising; ties go to the lower position.

    Raises:
        ValueError: `keep` is not below the number of tokens.
    """
    if not 0 < keep < score_Bn.shape[1]:
        raise ValueError(f"keep={keep} of {score_Bn.shape[1]} tokens: at least one must stay and one go")
    return score_Bn.sort(dim=1, descending=True, stable=True).indices[:, :keep].sort(dim=1).values


def apply_selection(x_BND: Tensor, selection: Selection) -> Tensor:
    """Gather the kept tokens behind CLS and append the merged one.

    Args:
        x_BND: CLS, then n tokens.
        selection: Made from scores of these n tokens.

    Returns:
        (B, 1 + K, D), or (B, 2 + K, D) with the merged token last.
    """
    batch, tokens, _ = x_BND.shape
    rows_BK = F.pad(selection.kept_BK + 1, (1, 0)) + tokens * torch.arange(batch, device=x_BND.device)[:, None]
    # Whole rows of the flattened batch: half the time of a gather whose index names every number.
    left = x_BND.flatten(0, 1).index_select(0, rows_BK.flatten()).unflatten(0, (batch, -1))
    if selection.weight_Bn is None:
        return left
    return torch.cat([left, (selection.weight_Bn[:, None] @ x_BND[:, 1:]).to(x_BND.dtype)], 1)


def select_origin(origin_BN: Tensor, selection: Selection, merged_as: int) -> Tensor:
    """Follow where tokens came from: as `apply_selection`, with code `merged_as` for the merged token."""
    parts = [origin_BN[:, :1], origin_BN.gather(1, selection.kept_BK + 1)]
    if selection.weight_Bn is not None:
        parts.append(torch.full_like(origin_BN[:, :1], merged_as))
    return torch.cat(parts, 1)


def select_present(present_BN: Tensor, selection: Selection) -> Tensor:
    """Which tokens are there after `apply_selection` on a stream where some were not."""
    assert selection.present_BK is not None, "the selection was made as if all tokens were there"
    return torch.cat([present_BN[:, :1], selection.present_BK.to(present_BN.dtype)], 1)
