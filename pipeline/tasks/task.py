"""What the one training loop asks of a task; the loop knows no objective."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from pipeline.data.batch import ImageTextBatch


@dataclass(frozen=True)
class Losses:
    """What one step computed.

    Attributes:
        total: Scalar with gradient; its mean over processes is the loss of the global batch.
        named: Its parts, for the log.
        scalars: Other numbers worth a curve (temperature, kept share, ...).
    """

    total: Tensor
    named: Mapping[str, Tensor]
    scalars: Mapping[str, Tensor | float] = field(default_factory=dict)


class Task(Protocol):
    """A thing to train."""

    module: nn.Module
    """All that the optimizer owns."""

    def losses_of_parts(
        self, forward: Callable[..., Any], parts: Sequence[ImageTextBatch], progress: float
    ) -> Iterator[Losses]:
        """Losses of an update, one for each part, whose mean is that of the update.

        They are taken one at a time and differentiated before the next is asked for, so that the graph of one part
        only is alive. What the parts have to do with each other is the task's own affair.

        Args:
            forward: `module` as the engine wraps it.
            parts: This process's part of the global batch on the device, in equal parts.
            progress: Share of training that is done, 0 to 1; all schedules are functions of it.
        """
        ...

    def before_update(self, progress: float) -> None:
        """Called once before the losses of an update, however many parts its batch is cut into."""
        ...

    def after_update(self, progress: float) -> None:
        """Called once after an update."""
        ...

    def drop_update(self) -> None:
        """Called in place of `after_update` where an update was left out: forgets what its batch left behind."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """State that the optimizer does not own, whole and the same on every process."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state of `tensors`."""
        ...


class EachPartAlone(ABC):
    """For tasks whose parts of an update have nothing to do with each other."""

    @abstractmethod
    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """Losses of one part; arguments as in `Task.losses_of_parts`."""

    def losses_of_parts(
        self, forward: Callable[..., Any], parts: Sequence[ImageTextBatch], progress: float
    ) -> Iterator[Losses]:
        """See `Task`."""
        return (self.losses(forward, part, progress) for part in parts)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{name: t}`` -> ``{prefix.name: t}``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `with_prefix`, leaving out names of other prefixes."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
