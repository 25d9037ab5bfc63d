"""What retrieval learns from, in the place of a classifier's scores: features with matching, or scores of candidates.

B pairs of this process, E embedding width, G pairs of all processes, N pairs with their negatives, C candidates.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.objectives.gather import gather_with_gradient
from pipeline.objectives.infonce import symmetric_contrast
from pipeline.objectives.itm import matching_loss
from pipeline.trimming.distillation import class_divergence

_CONTRAST_CHUNK = 1024  # rows whose scores are held at a time


class Compared(Protocol):
    """What a model says of the pairs of a batch; a tuple of tensors, as `Answers` is."""

    def loss(self) -> Tensor:
        """Scalar, mean over the batch."""
        ...

    def divergence(self, full: Any) -> Tensor:
        """Scalar: KL from what the full model says of the same pairs, whose side has no gradient."""
        ...

    def accuracy(self) -> Tensor:
        """Scalar: share of what finds its own first."""
        ...

    def scalars(self) -> dict[str, Tensor | float]:
        """What the log says besides."""
        ...


class Contrasted(NamedTuple):
    """Contrast ranks, and matching judges pairs (ALBEF, BLIP).

    Attributes:
        image_BE: Unit features.
        text_BE: Likewise; row b of both belong together.
        temperature: Of one element.
        matching_N2: Scores of the B pairs, then of those that do not belong together.
    """

    image_BE: Tensor
    text_BE: Tensor
    temperature: Tensor
    matching_N2: Tensor

    def ways(self) -> Iterator[Tensor]:
        """(B, G) scores of the texts of all processes for each picture, then of the pictures for each text."""
        for rows_BE, others_BE in ((self.image_BE, self.text_BE), (self.text_BE, self.image_BE)):
            yield rows_BE @ gather_with_gradient(others_BE).T / self.temperature

    def loss(self) -> Tensor:
        """Contrast among the batch of all processes, and matching."""
        image_BE, text_BE, temperature, matching_N2 = self
        matches_N = torch.arange(len(matching_N2), device=matching_N2.device) < len(image_BE)
        contrast = symmetric_contrast(image_BE, text_BE, temperature, _CONTRAST_CHUNK)
        return contrast + matching_loss(matching_N2, matches_N)

    def divergence(self, full: "Contrasted") -> Tensor:
        """Of the candidates in the batch, mean of both ways; and of matching's two classes for each pair."""
        ways = [class_divergence(*both) for both in zip(self.ways(), full.ways(), strict=True)]
        return sum(ways, start=torch.zeros_like(ways[0])) / 2 + class_divergence(self.matching_N2, full.matching_N2)

    def accuracy(self) -> Tensor:
        """Share of pictures and texts that find each other first among those of this process, by features."""
        own_BB = self.image_BE.detach() @ self.text_BE.detach().T
        right_B = torch.arange(len(own_BB), device=own_BB.device)
        return torch.cat([own_BB.argmax(way) == right_B for way in (0, 1)]).float().mean()

    def scalars(self) -> dict[str, Tensor | float]:
        """The temperature."""
        return {"temperature": self.temperature.detach().clone().squeeze()}


class Ranked(NamedTuple):
    """Matching alone ranks: each picture's own text among others (METER).

    Attributes:
        scores_BC: Of the own text, then of others; where there are fewer others a score that no softmax sees.
    """

    scores_BC: Tensor

    @classmethod
    def of(cls, scores_BC: Tensor, there_BC: Tensor) -> "Ranked":
        """Of scores that count where `there_BC` is True."""
        # Not -inf: of two of these a divergence would be no number.
        return cls(scores_BC.masked_fill(~there_BC, torch.finfo(scores_BC.dtype).min))

    def loss(self) -> Tensor:
        """Cross entropy of the own text among the candidates."""
        return -self.scores_BC.log_softmax(1)[:, 0].mean()

    def divergence(self, full: "Ranked") -> Tensor:
        """Of each picture's candidates."""
        return class_divergence(self.scores_BC, full.scores_BC)

    def accuracy(self) -> Tensor:
        """Share of pictures whose own text scores highest."""
        own_B1, others_BC = self.scores_BC.detach().split([1, self.scores_BC.shape[1] - 1], 1)
        return (own_B1 > others_BC).all(1).float().mean()

    def scalars(self) -> dict[str, Tensor | float]:
        """None."""
        return {}
