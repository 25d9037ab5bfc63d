"""Ranks of right answers among candidates, with ties counted against the model.

A candidate that is wrong and has the same score as the right one stands before it. So a model that gives everything the
same score finds nothing, and no order of the data helps.

Which candidates are right is told by a table (Q, C), or, where there are many of both, by pairs: a table of as many
numbers as there are scores would take longer to go through than the scores.

Q queries, C candidates, K candidates kept of each query, P pairs that are right, G groups of candidates, M members of
chosen groups.
"""

from typing import NamedTuple

import torch
from torch import Tensor

RECALLED = (1, 5, 10)
"""The k of R@k."""

WAYS = ("TR", "IR")
"""From an image to its texts, from a text to its image."""

RECALLS = (*(f"{way} R@{k}" for way in WAYS for k in RECALLED), "R@10", "mean_recall")
"""Scores of retrieval: of either way, the mean of both R@10, and the mean of all six."""


def best_right(scores_QC: Tensor, right_QC: Tensor) -> Tensor:
    """(Q,) the highest score of a right candidate; -inf where none is right."""
    return scores_QC.masked_fill(~right_QC, -torch.inf).amax(1)


def ahead(scores_QC: Tensor, right_QC: Tensor, best_Q: Tensor) -> Tensor:
    """(Q,) int64, how many wrong candidates score at least as high as `best_Q`.

    With all candidates, and the best right score of each query, that is its rank from 0. Over parts of the candidates
    it adds up.
    """
    return ((scores_QC >= best_Q[:, None]) & ~right_QC).sum(1)


class Right(NamedTuple):
    """Which candidates are right: of each such pair the query's row and the candidate's column, int64; each once."""

    row_P: Tensor
    column_P: Tensor

    @classmethod
    def where(cls, right_QC: Tensor) -> "Right":
        """The pairs of a table."""
        return cls(*right_QC.nonzero(as_tuple=True))

    def of(self, query: int, candidates: int) -> Tensor:
        """(C,) the row of the table for a query."""
        right_C = torch.zeros(candidates, dtype=torch.bool, device=self.row_P.device)
        right_C[self.column_P[self.row_P == query]] = True
        return right_C


def ranks_of(scores_QC: Tensor, right_QC: Tensor) -> Tensor:
    """(Q,) int64 rank from 0 of the best right candidate: the number of wrong ones before it.

    Args:
        scores_QC: Finite.
        right_QC: True where a candidate is right; several may be.
    """
    return ranks_among(scores_QC, Right.where(right_QC))


def ranks_among(scores_QC: Tensor, right: Right) -> Tensor:
    """As `ranks_of`; counts what scores at least as high as the best right one, and takes the right ones off again."""
    score_P = scores_QC[right.row_P, right.column_P]
    best_Q = scores_QC.new_full((len(scores_QC),), -torch.inf).scatter_reduce(0, right.row_P, score_P, "amax")
    as_high_P = (score_P >= best_Q[right.row_P]).long()
    return (scores_QC >= best_Q[:, None]).sum(1).index_add(0, right.row_P, as_high_P, alpha=-1)


def top_candidates(scores_QC: Tensor, right_QC: Tensor, top: int) -> Tensor:
    """(Q, K) int64, the candidates of the K highest scores, in no particular order; equal ones as `ranks_of` has them.

    Args:
        scores_QC: Finite.
        right_QC: True where a candidate is right: of equal scores wrong ones come first, then earlier ones.
        top: K, at most C.
    """
    return top_among(scores_QC, Right.where(right_QC), top)


def top_among(scores_QC: Tensor, right: Right, top: int) -> Tensor:
    """As `top_candidates`."""
    highest = _highest(scores_QC, top)
    # Of equal scores topk takes any; that matters only where they do not all find a place.
    for query in highest.crowded_Q.nonzero()[:, 0].tolist():
        scores_C, least, right_C = scores_QC[query], highest.least_Q[query], right.of(query, scores_QC.shape[1])
        parts = scores_C > least, (scores_C == least) & ~right_C, (scores_C == least) & right_C
        highest.found_QK[query] = torch.cat([part.nonzero()[:, 0] for part in parts])[:top]
    return highest.found_QK


class _Highest(NamedTuple):
    """The K candidates of the highest scores, the least of these, and where others score as high as that."""

    found_QK: Tensor
    least_Q: Tensor
    crowded_Q: Tensor


_MEMBERS = 64  # of a group


def _highest(scores_QC: Tensor, top: int) -> _Highest:
    """Looks in the K groups of candidates whose highest scores are highest: no other can hold one of the best K.

    Sorting out the best of all candidates takes several times as long as the highest of each group.
    """
    candidates = scores_QC.shape[1]
    groups = candidates // _MEMBERS
    if groups <= 2 * top:
        values_QK, found_QK = scores_QC.topk(top)
        least_Q = values_QK.amin(1)
        return _Highest(found_QK, least_Q, (scores_QC >= least_Q[:, None]).sum(1) > top)
    whole = groups * _MEMBERS
    # A group's members lie `groups` apart, so that whole rows of numbers are compared.
    highest_QG = scores_QC[:, :whole].unflatten(1, (_MEMBERS, groups)).amax(1)
    chosen_QK = highest_QG.topk(top).indices
    members_QM = (chosen_QK[..., None] + torch.arange(0, whole, groups, device=chosen_QK.device)).flatten(1)
    rest = torch.arange(whole, candidates, device=chosen_QK.device)
    members_QM = torch.cat([members_QM, rest.expand(len(scores_QC), -1)], 1)
    scores_QM = scores_QC.gather(1, members_QM)
    values_QK, at_QK = scores_QM.topk(top)
    least_Q1 = values_QK.amin(1, keepdim=True)
    crowded_Q = (scores_QM >= least_Q1).sum(1) > top
    outside_Q = (highest_QG >= least_Q1).sum(1) > (highest_QG.gather(1, chosen_QK) >= least_Q1).sum(1)
    return _Highest(members_QM.gather(1, at_QK), least_Q1[:, 0], crowded_Q | outside_Q)


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
