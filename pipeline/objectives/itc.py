"""Image-text contrast with momentum distillation and queues (ALBEF, arXiv 2107.07651, eq. 1 and 6).

B rows of this process, C rows of a chunk, G = W * B rows of all processes, N candidates, Q queue length, E embedding
width, K = G + Q keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.objectives.chunked import Keys, OwnPair, Targets, chunked_cross_entropy, log_shares
from pipeline.objectives.gather import gather_constant, rank
from pipeline.precision import at_least_float32


class FeatureQueue:
    """The newest momentum features of both modalities, the same on every process.

    `active` says whether it serves as keys; it is filled in any case.

    Args:
        embed: E.
        length: Q; 0 for no queue.
        generator: Draws the unit vectors it begins with.
        device: Where it lives.
    """

    def __init__(self, embed: int, length: int, generator: torch.Generator, device: torch.device) -> None:
        self.image_EQ = F.normalize(torch.randn(embed, length, generator=generator), dim=0).to(device)
        self.text_EQ = F.normalize(torch.randn(embed, length, generator=generator), dim=0).to(device)
        self.next = 0
        self.active = True
        self._aside: list[tuple[Tensor, Tensor]] = []

    def keys(self) -> tuple[Tensor, Tensor]:
        """(E, Q) image and text columns to contrast with; none while the queue is not active."""
        columns = slice(None) if self.active else slice(0, 0)
        return self.image_EQ[:, columns], self.text_EQ[:, columns]

    def put_aside(self, image_GE: Tensor, text_GE: Tensor) -> None:
        """Keep features until `take`: the parts of one update all see the queue as it was before."""
        self._aside.append((image_GE, text_GE))

    def take(self) -> None:
        """Push what was put aside."""
        for image_GE, text_GE in self._aside:
            self.push(image_GE, text_GE)
        self._aside.clear()

    def drop(self) -> None:
        """Forget what was put aside."""
        self._aside.clear()

    def push(self, image_GE: Tensor, text_GE: Tensor) -> None:
        """Overwrite the oldest columns, going round at the end (ELIP's queue, which wraps)."""
        length = self.image_EQ.shape[1]
        if length == 0:
            return
        columns = (self.next + torch.arange(len(image_GE), device=self.image_EQ.device)) % length
        newest = slice(max(0, len(image_GE) - length), None)
        self.image_EQ[:, columns[newest]] = image_GE[newest].T.to(self.image_EQ.dtype)
        self.text_EQ[:, columns[newest]] = text_GE[newest].T.to(self.text_EQ.dtype)
        self.next = (self.next + len(image_GE)) % length

    def tensors(self) -> dict[str, Tensor]:
        """All state, for a checkpoint."""
        return {"image": self.image_EQ, "text": self.text_EQ, "next": torch.tensor(self.next)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the state of `tensors`."""
        self.image_EQ.copy_(tensors["image"])
        self.text_EQ.copy_(tensors["text"])
        self.next = int(tensors["next"])


@dataclass(frozen=True)
class SameImage:
    """The hard targets of BLIP's retrieval: all keys of the same image, in equal parts.

    Attributes:
        ids_B: Image of each pair of this process.
        keys_K: Image of each key; negative where it is not known.
    """

    ids_B: Tensor
    keys_K: Tensor

    @classmethod
    def of(cls, ids_B: Tensor, queue_ids_Q: Tensor) -> "SameImage":
        """Of the columns of a queue that serves as keys; processes must call this together."""
        return cls(ids_B, torch.cat([gather_constant(ids_B), queue_ids_Q]))

    def shares(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """(C, K) targets of some rows."""
        same_CK = (self.ids_B[rows, None] == self.keys_K).to(dtype)
        return same_CK / same_CK.sum(1, keepdim=True)


@dataclass(frozen=True)
class Distilled:
    """``alpha * softmax(momentum scores / temperature) + (1 - alpha) * hard``, for `chunked_cross_entropy`.

    Attributes:
        momentum_BE: Features of the momentum tower.
        keys: The same that the online rows are contrasted with.
        temperature: Constant.
        alpha: Weight of the momentum scores.
        first: Key of the first row's own pair.
        same: The hard part where it is not the own pair alone.
    """

    momentum_BE: Tensor
    keys: Keys
    temperature: Tensor
    alpha: float
    first: int
    same: SameImage | None = None

    def shares(self, rows: slice) -> Tensor:
        """(C, K) targets of some rows."""
        share_CK = log_shares(self.momentum_BE[rows], self.keys, self.temperature).exp_().mul_(self.alpha)
        if self.same is None:
            share_CK[:, self.first + rows.start : self.first + rows.stop].diagonal().add_(1 - self.alpha)
        else:
            share_CK.add_(self.same.shares(rows, share_CK.dtype), alpha=1 - self.alpha)
        return share_CK

    def cross_entropy_(self, log_CK: Tensor, rows: slice) -> Tensor:
        """See `Targets`."""
        wanted_CK = self.shares(rows)
        loss = -torch.dot(wanted_CK.view(-1), log_CK.view(-1))  # without a product as large as they are
        log_CK.exp_().sub_(wanted_CK)
        return loss


def contrast(
    image_BE: Tensor,
    text_BE: Tensor,
    image_m_BE: Tensor,
    text_m_BE: Tensor,
    queue: FeatureQueue,
    temperature: Tensor,
    alpha: float,
    same: SameImage | None = None,
    *,
    chunk: int,
) -> Tensor:
    """Cross entropy against ``alpha * softmax(momentum scores) + (1 - alpha) * one-hot``, mean of both directions.

    The keys are the momentum features of all processes in rank order, then the queue, so that several processes
    compute the loss and gradient of the same batch on one.

    Args:
        image_BE: Unit features of the online tower, with gradient.
        text_BE: Likewise.
        image_m_BE: Unit momentum features, constant.
        text_m_BE: Likewise.
        queue: Keys of earlier updates; these keys are put aside in it.
        temperature: Of one element, with gradient through the online logits only.
        alpha: Weight of the momentum model's targets.
        same: The hard part of the targets; None for the own pair alone.
        chunk: Rows of a direction whose scores are alive at a time (`pipeline.objectives.chunked`).

    Returns:
        Scalar, of this process's rows.
    """
    image_BE, text_BE, image_m_BE, text_m_BE = map(at_least_float32, (image_BE, text_BE, image_m_BE, text_m_BE))
    image_GE, text_GE = gather_constant(image_m_BE), gather_constant(text_m_BE)
    queue_EQ = queue.keys()
    image_EQ, text_EQ = queue_EQ[0].to(image_BE.dtype), queue_EQ[1].to(image_BE.dtype)
    losses = []
    # 16 bits would round a logit of 14 to steps of 1/16.
    with torch.autocast(image_BE.device.type, enabled=False):
        for query_BE, momentum_BE, keys in (
            (image_BE, image_m_BE, Keys(text_GE, text_EQ)),
            (text_BE, text_m_BE, Keys(image_GE, image_EQ)),
        ):
            targets = _targets(momentum_BE.detach(), keys, temperature.detach(), alpha, same)
            losses.append(chunked_cross_entropy(query_BE, keys, temperature, targets, chunk))
    queue.put_aside(image_GE, text_GE)
    return (losses[0] + losses[1]) / 2


def _targets(momentum_BE: Tensor, keys: Keys, temperature: Tensor, alpha: float, same: SameImage | None) -> Targets:
    first = own_columns(len(momentum_BE)).start
    if alpha == 0 and same is None:
        return OwnPair(first)
    return Distilled(momentum_BE, keys, temperature, alpha, first, same)


@torch.no_grad()
def similarity(query_CE: Tensor, key_NE: Tensor, temperature: Tensor) -> Tensor:
    """(C, N) logits of online features against the momentum features of candidates, for drawing negatives."""
    with torch.autocast(query_CE.device.type, enabled=False):
        return at_least_float32(query_CE) @ at_least_float32(key_NE).T / temperature


def own_columns(size: int) -> slice:
    """Where the keys of this process's batch stand among those of all processes."""
    return slice(rank() * size, (rank() + 1) * size)
