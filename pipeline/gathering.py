"""Work that is dealt to ranks, and results that every rank gets whole and in the same order.

Work is cut into blocks by its own size, never by the number of ranks: each block is computed in the same shapes whoever
does it, so that the last bits do not depend on how many do.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.process import Process

T = TypeVar("T")


def dealt(total: int, size: int, process: Process) -> Iterator[slice]:
    """This rank's blocks of `size` out of `total` rows: every world_size-th one."""
    for begin in range(process.rank * size, total, process.world_size * size):
        yield slice(begin, min(begin + size, total))


def places_of(blocks: Iterable[slice], device: torch.device) -> Tensor:
    """(n,) int64, the rows of these blocks."""
    rows = [row for block in blocks for row in range(block.start, block.stop)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def all_objects(process: Process, value: T) -> list[T]:
    """Every rank's value, in the order of ranks; picklable and small."""
    if process.world_size == 1:
        return [value]
    found: list[Any] = [None] * process.world_size
    dist.all_gather_object(found, value)
    return found


def total(process: Process, x: Tensor) -> Tensor:
    """The sum over ranks of tensors of one shape, added up in the order of ranks."""
    if process.world_size == 1:
        return x
    return torch.stack(_exchanged(process, x, [len(x)] * process.world_size)).sum(0)


def assemble(process: Process, rows: Tensor, places: Tensor, size: int) -> Tensor:
    """(size, ...) every rank's rows at their places, on every rank.

    Args:
        process: This rank.
        rows: (n, ...) this rank's; n may differ, or be 0.
        places: (n,) int64 where they go; over all ranks each place once.
        size: How many there are in all.
    """
    whole = rows.new_empty(size, *rows.shape[1:])
    counts = all_objects(process, len(rows))
    everywhere = _exchanged(process, places, counts)
    for part, at in zip(_exchanged(process, rows, counts), everywhere, strict=True):
        whole[at] = part
    return whole


def _exchanged(process: Process, x: Tensor, counts: list[int]) -> list[Tensor]:
    """Each rank's (counts[rank], ...) rows, on this rank's device. They travel as bytes, for gloo lacks some types."""
    if process.world_size == 1:
        return [x]
    width = x[:1].numel() if len(x) else x.new_empty(1, *x.shape[1:]).numel()
    flat = x.detach().reshape(len(x), width).contiguous().view(torch.uint8)
    where = torch.device("cpu") if dist.get_backend() == "gloo" else x.device
    padded = torch.zeros(max(counts), flat.shape[1], dtype=torch.uint8, device=where)
    padded[: len(x)] = flat.to(where)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [
        part[:count].to(x.device).view(x.dtype).reshape(count, *x.shape[1:])
        for part, count in zip(parts, counts, strict=True)
    ]
