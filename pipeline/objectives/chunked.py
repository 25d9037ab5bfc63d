"""Cross entropy of similarities, some rows at a time: memory is linear in the rows held, not in the batch.

Scores, their softmax and their slope are alive for one chunk only. Gradients of features are sums over chunks, so they
are made in the same pass: nothing is kept for the backward but them, and no product is computed twice.

B rows of this process, C rows of a chunk, G rows of all processes, Q queue length, E embedding width, K = G + Q keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """What rows are contrasted with: a batch's features, then a queue's columns (None for none).

    They are not joined, as that would copy the queue.
    """

    batch_GE: Tensor
    queue_EQ: Tensor | None = None

    def scores(self, rows_CE: Tensor) -> Tensor:
        """(C, K) products."""
        batch = len(self.batch_GE)
        queued = 0 if self.queue_EQ is None else self.queue_EQ.shape[1]
        scores_CK = rows_CE.new_empty(len(rows_CE), batch + queued)
        torch.mm(rows_CE, self.batch_GE.T, out=scores_CK[:, :batch])
        if self.queue_EQ is not None and queued:
            torch.mm(rows_CE, self.queue_EQ, out=scores_CK[:, batch:])
        return scores_CK

    def weighted(self, weights_CK: Tensor) -> Tensor:
        """(C, E) sums of keys."""
        batch = len(self.batch_GE)
        sums_CE = weights_CK[:, :batch] @ self.batch_GE
        return sums_CE if self.queue_EQ is None else sums_CE.addmm_(weights_CK[:, batch:], self.queue_EQ.T)


class Targets(Protocol):
    """Which keys the rows should have found; the wanted shares of each row sum to 1."""

    def cross_entropy_(self, log_CK: Tensor, rows: slice) -> Tensor:
        """Sum of some rows' cross entropy, whose slope is left in place of the logarithms.

        Args:
            log_CK: Logarithms of the rows' shares; becomes their shares less the wanted ones.
            rows: Which of the B rows they are.
        """
        ...


@dataclass(frozen=True)
class OwnPair:
    """Row b should find key `first` + b and no other."""

    first: int

    def cross_entropy_(self, log_CK: Tensor, rows: slice) -> Tensor:
        """See `Targets`."""
        own_C = log_CK[:, self.first + rows.start : self.first + rows.stop].diagonal()
        loss = -own_C.sum()
        log_CK.exp_()
        own_C.sub_(1)
        return loss


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Row ranges of at most `size`."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def log_shares(rows_CE: Tensor, keys: Keys, temperature: Tensor) -> Tensor:
    """(C, K) logarithms of the softmax of scores over temperature."""
    scores_CK = keys.scores(rows_CE / temperature)
    return scores_CK.sub_(scores_CK.logsumexp(1, keepdim=True))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and, as far as they are wanted, its gradients, which the backward only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BE: Tensor,
        key_GE: Tensor,
        temperature: Tensor,
        queue_EQ: Tensor | None,
        targets: Targets,
        chunk: int,
    ) -> Tensor:
        keys, wanted = Keys(key_GE, queue_EQ), ctx.needs_input_grad[:3]
        loss, count = query_BE.new_zeros(()), len(query_BE)
        of_query_BE = torch.empty_like(query_BE) if wanted[0] or wanted[2] else None
        of_key_GE = torch.zeros_like(key_GE) if wanted[1] else None
        for rows in chunks(count, chunk):
            slope_CK = log_shares(query_BE[rows], keys, temperature)
            loss += targets.cross_entropy_(slope_CK, rows)
            slope_CK.div_(temperature * count)
            if of_query_BE is not None:
                of_query_BE[rows] = keys.weighted(slope_CK)
            if of_key_GE is not None:
                of_key_GE.addmm_(slope_CK.T, query_BE[rows])
        of_temperature = None
        if of_query_BE is not None and wanted[2]:
            # Scores are linear in the query and in 1 / temperature.
            of_temperature = (-(of_query_BE * query_BE).sum() / temperature).reshape(temperature.shape)
        ctx.save_for_backward(of_query_BE, of_key_GE, of_temperature)
        return loss / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if saved is None else gradients[0] * saved for saved in ctx.saved_tensors)
        return *scaled, None, None, None


def chunked_cross_entropy(query_BE: Tensor, keys: Keys, temperature: Tensor, targets: Targets, chunk: int) -> Tensor:
    """Mean over rows of the cross entropy between wanted shares and the softmax of ``query @ keys / temperature``.

    Args:
        query_BE: Features, with or without gradient.
        keys: Of them the batch's may have a gradient; the queue has none.
        temperature: Of one element, with or without gradient.
        targets: Wanted shares.
        chunk: Rows whose scores are alive at a time.

    Returns:
        Scalar, which can be differentiated once.
    """
    given = query_BE, keys.batch_GE, temperature
    if not torch.is_grad_enabled():
        given = given[0].detach(), given[1].detach(), given[2].detach()  # autograd asks what they are, not where
    loss: Tensor = _ChunkedCrossEntropy.apply(*given, keys.queue_EQ, targets, chunk)
    return loss
