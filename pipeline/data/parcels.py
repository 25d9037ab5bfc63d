"""How a batch comes from a worker to the trainer: through memory that is shared and used again.

A tensor that torch passes between processes lies in a fresh shared file, whose pages cost more to make than a small
picture costs to decode; five small tensors are five such files. Here the pixels go through slots made once, copied out
by the trainer, and all the rest of a batch goes through the same memory as one piece behind them.

Only a few bytes go through the DataLoader's queue, which is a pipe of 64 KiB. So no message is ever written in part.
Whoever is killed within a longer one leaves half of it, for the rest of which the reader waits for ever (unless it is
the main thread, which signals reach); and a worker whose trainer was killed waits for ever for room in the pipe.

No slot needs to be given back. A DataLoader hands out the steps in order and has at most workers * prefetch_factor of
them out; it asks for one more when a batch arrives, before the trainer gets to see that batch. So with one slot more
than that, the slot of a step is written again only after the trainer has asked for the next batch, and by then it has
its copy. Each iterator needs slots of its own: two of them are at different steps.
"""

import dataclasses
import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.batch import ImageTextBatch

_APART = 1 << 32  # bytes of the file from one slot's rest to the next's; what is not written takes no memory


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A batch that lies in its slot.

    Attributes:
        step: whose batch it is.
        size: bytes of all that is not pixels.
    """

    step: int
    size: int


class Slots:
    """Shared memory for the batches that are under way. It goes through a fork, and through pickling for a new process.

    It is memory without a name: nothing is left of it when the last process has ended, and the room in /dev/shm, of
    which containers have 64 MB, is no limit.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        """Asks for the memory; pages are taken when they are first written.

        Args:
            count: steps that may be under way, and one more.
            shape: of the largest batch's pixels, (B, 3, H, W).
        """
        self._count = count
        self._shape = shape
        self._file = _nameless_file()
        os.ftruncate(self._file, self._pixel_bytes)
        self._memory = mmap.mmap(self._file, self._pixel_bytes)

    @property
    def _pixel_bytes(self) -> int:
        return self._count * int(np.prod(self._shape))

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is about to be started."""
        return {"_count": self._count, "_shape": self._shape, "_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In that process."""
        self.__dict__.update(state, _file=state["_file"].detach())
        self._memory = mmap.mmap(self._file, self._pixel_bytes)

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)

    def pixels(self, step: int) -> NDArray[np.uint8]:
        """The slot of a step, (B, 3, H, W)."""
        return np.frombuffer(self._memory, dtype=np.uint8).reshape(self._count, *self._shape)[step % self._count]

    def _rest_at(self, step: int) -> int:
        return self._pixel_bytes + step % self._count * _APART

    def pack(self, step: int, batch: ImageTextBatch) -> Parcel:
        """Puts the rest of a batch, whose pixels were made in the slot of the step, behind them."""
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        del values["pixels"]
        arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()}
        rest = pickle.dumps(arrays, protocol=pickle.HIGHEST_PROTOCOL)
        written = os.pwrite(self._file, rest, self._rest_at(step))
        assert written == len(rest) < _APART
        return Parcel(step=step, size=written)

    def unpack(self, parcel: Parcel, *, pinned: bool) -> ImageTextBatch:
        """The batch again, in memory of its own; page-locked if wanted."""
        rest = os.pread(self._file, parcel.size, self._rest_at(parcel.step))
        # Pickled by our own worker in memory that nobody else can reach, as the queue does.
        values: dict[str, Any] = pickle.loads(rest)
        tensors: dict[str, Any] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()
        }
        rows = torch.from_numpy(self.pixels(parcel.step)[: len(tensors["keys"])])
        batch = ImageTextBatch(pixels=rows, **tensors)
        if pinned:
            return batch.pin_memory()
        return dataclasses.replace(batch, pixels=rows.clone())


def _nameless_file() -> int:
    """A file in memory; where the system has no such, one of the temporary folder."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("trimline", os.MFD_CLOEXEC)
    handle, name = tempfile.mkstemp(prefix="trimline-")
    os.unlink(name)
    return handle
