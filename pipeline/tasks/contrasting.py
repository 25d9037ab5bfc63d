"""Contrast of a whole update whose parts are encoded one at a time (GradCache, Gao et al. 2021, arXiv 2101.06983).

The loss needs the features of all parts, but each part's weights are reached through its own features only. So all
parts are encoded without a graph first; the loss of their joined features gives the gradient of each feature; then each
part is encoded again, by the same chances, and the product of its features with these gradients is differentiated.

B rows of this process, E embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What contrast looks at.

    Attributes:
        image_BE: Unit features of the online model.
        text_BE: Likewise.
        image_m_BE: Of the momentum tower, constant; None where there is none.
        text_m_BE: Likewise.
    """

    image_BE: Tensor
    text_BE: Tensor
    image_m_BE: Tensor | None = None
    text_m_BE: Tensor | None = None

    @classmethod
    def joined(cls, parts: "Sequence[Features]") -> "Features":
        """The rows of several batches, one after the other, without gradient."""

        def rows(name: str) -> Tensor | None:
            found = [tensor for part in parts if (tensor := getattr(part, name)) is not None]
            return torch.cat(found).detach() if found else None

        return cls(**{field.name: rows(field.name) for field in fields(cls)})  # type: ignore[arg-type]


Contrasting = Callable[[Features, Tensor], Tensor | None]
"""(features of a batch, temperature) -> its contrastive loss; None where nothing else is wanted of the batch."""


@dataclass(frozen=True)
class Collected:
    """Keeps the features of the batches that it is shown, and wants nothing else of them."""

    seen: list[Features]

    def __call__(self, features: Features, temperature: Tensor) -> None:
        """See `Contrasting`."""
        self.seen.append(features)


@dataclass(frozen=True)
class CachedContrast:
    """One part's share in the loss of all parts.

    Attributes:
        loss: Of all of them.
        image_BE: Its gradient by this part's features, times the number of parts: engines average over parts.
        text_BE: Likewise.
        temperature: Its gradient by the temperature, a part of which each part would give.
    """

    loss: Tensor
    image_BE: Tensor
    text_BE: Tensor
    temperature: Tensor

    def __call__(self, features: Features, temperature: Tensor) -> Tensor:
        """The loss of all parts, with this part's gradient."""
        linear = (features.image_BE * self.image_BE).sum() + (features.text_BE * self.text_BE).sum()
        linear = linear + (temperature * self.temperature).sum()
        return self.loss + (linear - linear.detach())


def cached_contrasts(
    parts: Sequence[Features], loss: Callable[[Features, Tensor], Tensor], temperature: Tensor
) -> list[CachedContrast]:
    """The loss of all parts and what each has to do for its gradient; all processes call it together.

    Args:
        parts: Features of each.
        loss: Of joined features, and a temperature.
        temperature: That holds.
    """
    whole = Features.joined(parts)
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (whole.image_BE, whole.text_BE, temperature)]
    # The first pass may be one without gradients for whoever called this.
    with torch.enable_grad():
        value = loss(Features(leaves[0], leaves[1], whole.image_m_BE, whole.text_m_BE), leaves[2])
    image_BE, text_BE, of_temperature = torch.autograd.grad(value, leaves)
    sizes, count = [len(part.image_BE) for part in parts], len(parts)
    rows = zip((image_BE * count).split(sizes), (text_BE * count).split(sizes), strict=True)
    return [CachedContrast(value.detach(), *of_features, of_temperature) for of_features in rows]


def chances(count: int) -> list[int]:
    """Seeds of so many parts, from torch's generator."""
    return [int(seed) for seed in torch.randint(2**62, (count,))]


@contextmanager
def by_chance(seed: int, device: torch.device) -> Iterator[None]:
    """What happens in it (dropout) is drawn by the seed; the generators are left as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
