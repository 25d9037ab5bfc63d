"""Ranks of right answers among candidates, with ties counted against the model.

A candidate that is wrong and has the same score as the right one stands before it. So a model that gives everything the
same score finds nothing, and no order of the data helps.

Q queries, C candidates, K candidates kept of each query.
"""

import torch
from torch import Tensor

RECALLED = (1, 5, 10)
"""The k of R@k."""


def best_right(scores_QC: Tensor, right_QC: Tensor) -> Tensor:
    """(Q,) the highest score of a right candidate; -inf where none is right."""
    return scores_QC.masked_fill(~right_QC, -torch.inf).amax(1)


def ahead(scores_QC: Tensor, right_QC: Tensor, best_Q: Tensor) -> Tensor:
    """(Q,) int64, how many wrong candidates score at least as high as `best_Q`.

    With all candidates, and the best right score of each query, that is its rank from 0. Over parts of the candidates
    it adds up.
    """
    return ((scores_QC >= best_Q[:, None]) & ~right_QC).sum(1)


def ranks_of(scores_QC: Tensor, right_QC: Tensor) -> Tensor:
    """(Q,) int64 rank from 0 of the best right candidate: the number of wrong ones before it.

    Args:
        scores_QC: Finite.
        right_QC: True where a candidate is right; several may be.
    """
    return ahead(scores_QC, right_QC, best_right(scores_QC, right_QC))


def top_candidates(scores_QC: Tensor, right_QC: Tensor, top: int) -> Tensor:
    """(Q, K) int64, the candidates of the K highest scores, in no particular order; equal ones as `ranks_of` has them.

    Args:
        scores_QC: Finite.
        right_QC: True where a candidate is right: of equal scores wrong ones come first, then earlier ones.
        top: K, at most C.
    """
    values_QK, found_QK = scores_QC.topk(top)
    least_Q = values_QK.amin(1)
    # Of equal scores topk takes any; that matters only where they do not all find a place.
    crowded = ((scores_QC >= least_Q[:, None]).sum(1) > top).nonzero()[:, 0]
    for query in crowded.tolist():
        above, equal = (scores_QC[query] > least_Q[query]).nonzero()[:, 0], scores_QC[query] == least_Q[query]
        wrong, right = ((equal & part).nonzero()[:, 0] for part in (~right_QC[query], right_QC[query]))
        found_QK[query] = torch.cat([above, wrong, right])[:top]
    return found_QK


def reranked(contrast_Q: Tensor, matched_QK: Tensor, right_QK: Tensor) -> Tensor:
    """(Q,) ranks where the K best candidates are put into a new order, and the others stay behind them.

    Args:
        contrast_Q: Ranks before.
        matched_QK: New scores of the K best, finite.
        right_QK: Which of them are right.
    """
    return torch.where(right_QK.any(1), ranks_of(matched_QK, right_QK), contrast_Q)


def recalls(ranks: Tensor) -> dict[str, list[float]]:
    """``R@1``, ``R@5``, ``R@10``: for each query 1 where a right answer is among the first k."""
    return {f"R@{k}": (ranks < k).float().tolist() for k in RECALLED}
