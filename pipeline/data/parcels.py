"""How a batch comes from a worker to the trainer: its pixels through memory that is shared and used again.

A tensor that torch passes between processes lies in a fresh shared file, whose pages cost more to make than a small
picture costs to decode; five small tensors are five such files. Here the pixels go through slots made once, copied out
by the trainer, and the rest goes through the queue as plain arrays.

No slot needs to be given back. A DataLoader hands out the steps in order and has at most workers * prefetch_factor of
them out; it asks for one more when a batch arrives, before the trainer gets to see that batch. So with one slot more
than that, the slot of a step is written again only after the trainer has asked for the next batch, and by then it has
its copy.
"""

import dataclasses
import multiprocessing
from ctypes import c_ubyte
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.batch import ImageTextBatch


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A batch on its way: its pixels lie in a slot, `batch` has arrays where it will have tensors."""

    step: int
    batch: dict[str, Any]


class Slots:
    """Shared memory for the pixels of the steps that are under way. It goes through forks like `WorkerBoard`."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        """Takes the memory, from /dev/shm, or from the temporary folder where that is too small.

        Args:
            count: steps that may be under way, and one more.
            shape: of the largest batch's pixels, (B, 3, H, W).
        """
        self._count = count
        self._shape = shape
        self._memory = multiprocessing.RawArray(c_ubyte, count * int(np.prod(shape)))

    def pixels(self, step: int) -> NDArray[np.uint8]:
        """The slot of a step, (B, 3, H, W)."""
        return self._array()[step % self._count]

    def _array(self) -> NDArray[np.uint8]:
        return np.frombuffer(memoryview(self._memory), dtype=np.uint8).reshape(self._count, *self._shape)

    def pack(self, step: int, batch: ImageTextBatch) -> Parcel:
        """What to send of a batch whose pixels were made in the slot of the step."""
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        del values["pixels"]
        arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()}
        return Parcel(step=step, batch=arrays)

    def unpack(self, parcel: Parcel, *, pinned: bool) -> ImageTextBatch:
        """The batch again, in memory of its own; page-locked if wanted."""
        tensors: dict[str, Any] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in parcel.batch.items()
        }
        rows = torch.from_numpy(self.pixels(parcel.step)[: len(tensors["keys"])])
        batch = ImageTextBatch(pixels=rows, **tensors)
        if pinned:
            return batch.pin_memory()
        return dataclasses.replace(batch, pixels=rows.clone())
