"""Image-text contrast with momentum distillation and queues (ALBEF, arXiv 2107.07651, eq. 1 and 6).

B rows of this process, G = W * B rows of all processes, Q queue length, E embedding width, K = G + Q keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
class Contrast:
    """Result of the contrastive loss.

    Attributes:
        loss: Mean of both directions over this process's rows.
        image_to_text_BG: Logits of each image of this process against the texts of all processes' batches.
        text_to_image_BG: Likewise of each text.
    """

    loss: Tensor
    image_to_text_BG: Tensor
    text_to_image_BG: Tensor


def contrast(
    image_BE: Tensor,
    text_BE: Tensor,
    image_m_BE: Tensor,
    text_m_BE: Tensor,
    queue: FeatureQueue,
    temperature: Tensor,
    alpha: float,
    positive_BK: Tensor | None = None,
) -> Contrast:
    """Cross entropy against ``alpha * softmax(momentum scores) + (1 - alpha) * one-hot``.

    The keys are the momentum features of all processes in rank order, then the queue, so that several processes
    compute the loss and gradient of the same batch on one.

    Args:
        image_BE: Unit features of the online tower, with gradient.
        text_BE: Likewise.
        image_m_BE: Unit momentum features, constant.
        text_m_BE: Likewise.
        queue: Keys of earlier updates; these keys are put aside in it.
        temperature: Scalar, with gradient through the online logits only.
        alpha: Weight of the momentum model's targets.
        positive_BK: The hard part of the targets (`same_image`); None for the own pair alone.

    Returns:
        Loss and logits.
    """
    image_BE, text_BE, image_m_BE, text_m_BE = map(at_least_float32, (image_BE, text_BE, image_m_BE, text_m_BE))
    image_GE, text_GE = gather_constant(image_m_BE), gather_constant(text_m_BE)
    image_EQ, text_EQ = queue.keys()
    # 16 bits would round a logit of 14 to steps of 1/16.
    with torch.autocast(image_BE.device.type, enabled=False):
        image_to_text = _scores(image_BE, text_GE, text_EQ) / temperature
        text_to_image = _scores(text_BE, image_GE, image_EQ) / temperature
        with torch.no_grad():
            target_i2t = _targets(_scores(image_m_BE, text_GE, text_EQ) / temperature, alpha, positive_BK)
            target_t2i = _targets(_scores(text_m_BE, image_GE, image_EQ) / temperature, alpha, positive_BK)
        loss = (F.cross_entropy(image_to_text, target_i2t) + F.cross_entropy(text_to_image, target_t2i)) / 2
    queue.put_aside(image_GE, text_GE)
    return Contrast(loss, image_to_text[:, : len(image_GE)], text_to_image[:, : len(image_GE)])


def _scores(feature_BE: Tensor, batch_GE: Tensor, queue_EQ: Tensor) -> Tensor:
    """(B, K) products with the batch's keys and the queue's; joining the keys instead would copy the queue."""
    return torch.cat([feature_BE @ batch_GE.T, feature_BE @ queue_EQ.to(feature_BE.dtype)], 1)


def own_columns(size: int) -> slice:
    """Where the keys of this process's batch stand among those of all processes."""
    return slice(rank() * size, (rank() + 1) * size)


def same_image(ids_B: Tensor, queue_ids_Q: Tensor) -> Tensor:
    """(B, K) the hard targets of BLIP's retrieval: all keys of the same image, in equal parts.

    Args:
        ids_B: Image of each pair of this process.
        queue_ids_Q: Image of each column of the queue that serves as a key; negative where it is not known.
    """
    keys_K = torch.cat([gather_constant(ids_B), queue_ids_Q])
    same_BK = (ids_B[:, None] == keys_K).double()
    return same_BK / same_BK.sum(1, keepdim=True)


def _targets(momentum_logits_BK: Tensor, alpha: float, positive_BK: Tensor | None) -> Tensor:
    """(B, K) soft targets; row b of this process has its match at column b of `own_columns`."""
    targets = alpha * momentum_logits_BK.softmax(1)
    if positive_BK is None:
        targets[:, own_columns(len(targets))].diagonal().add_(1 - alpha)
    else:
        targets += (1 - alpha) * positive_BK.to(targets.dtype)
    return targets
