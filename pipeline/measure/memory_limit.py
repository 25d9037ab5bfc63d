"""A limit on the memory of a training process, at which it ends itself and says so, before the machine has none left.

On a GPU torch's allocator holds the limit. On a CPU a thread looks at the most that the process has ever had in main
memory, as the kernel counts it: no moment escapes it, it only comes to know a little later.
"""

import multiprocessing
import os
from pathlib import Path
from types import TracebackType
from typing import TypedDict

import torch

from data_prep.files import read_json, write_json
from pipeline.log_facts import process_peak_bytes, reset_peak
from pipeline.process import Process
from pipeline.repeating import Repeating

OVER_MEMORY = 77
"""Exit code of a process that ended itself over its limit."""
_NAME = "over_memory.rank{}.json"
_PAUSE_SECONDS = 0.01


class Over(TypedDict):
    """What a process writes down that ends over its limit: its most, what it might have, and steps that were done."""

    peak_bytes: int
    limit_bytes: int | None  # None: there was no limit but the device's
    total_bytes: int | None  # of the GPU; None on a CPU
    step: int


class MemoryLimit:
    """Holds while it is open as a context manager.

    Args:
        folder: Where an end is written down.
        process: This process.
        limit_bytes: The most memory of it: of the GPU where it trains on one, else resident. None for no limit; a GPU
            that has no memory left is written down all the same.

    Attributes:
        step: Steps that are done; whoever makes them sets it.
    """

    def __init__(self, folder: Path, process: Process, limit_bytes: int | None) -> None:
        self.step = 0
        self._path = folder / _NAME.format(process.rank)
        self._device = process.torch_device
        self._limit_bytes = limit_bytes
        self._thread: Repeating | None = None

    def __enter__(self) -> "MemoryLimit":
        if self._limit_bytes is None:
            return self
        if self._device.type == "cuda":
            total = total_bytes(self._device)
            torch.cuda.set_per_process_memory_fraction(min(1.0, self._limit_bytes / total), self._device)
            return self
        self._thread = Repeating(self._look, _PAUSE_SECONDS, "memory")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.close()
            self._look()
        elif isinstance(error, torch.OutOfMemoryError):
            self._write_down(torch.cuda.max_memory_allocated(self._device), total_bytes(self._device))

    def forget_peak(self) -> None:
        """Has the peak begin anew (see `reset_peak`), for what follows is measured; what came before kept the limit."""
        if self._thread is not None:
            self._look()
        reset_peak(str(self._device))

    def _look(self) -> None:
        assert self._limit_bytes is not None
        peak = process_peak_bytes()
        if peak > self._limit_bytes:
            self._write_down(peak, None)
            for child in multiprocessing.active_children():
                child.kill()  # they may be held (`scale_trial.loaders_held`), and would wait for ever to go on
            # Not an exception: the main thread may be in the middle of an allocation of gigabytes.
            os._exit(OVER_MEMORY)

    def _write_down(self, peak: int, total: int | None) -> None:
        record = Over(peak_bytes=peak, limit_bytes=self._limit_bytes, total_bytes=total, step=self.step)
        write_json(self._path, dict(record))


def total_bytes(device: torch.device) -> int:
    """All memory of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def read_over(folder: Path) -> Over | None:
    """What a process wrote down that ended over its limit; None if none did."""
    found = sorted(folder.glob(_NAME.format("*")))
    if not found:
        return None
    record: Over = read_json(found[0])
    return record


def clear_over(folder: Path) -> None:
    """Removes what was written down before."""
    for path in folder.glob(_NAME.format("*")):
        path.unlink()
