"""What several processes must exchange so that a loss is that of the whole batch."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes in the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_constant(x: Tensor) -> Tensor:
    """(W*B, ...) the rows of all processes in rank order, without gradient."""
    if world_size() == 1:
        return x.detach()
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All rows forward; backward the gradients of all processes are summed, and each keeps its own rows'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = len(x)
        return gather_constant(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total[rank() * ctx.size : (rank() + 1) * ctx.size]


def gather_with_gradient(x: Tensor) -> Tensor:
    """(W*B, ...) the rows of all processes in rank order.

    Each row's gradient is the sum over processes, so that their mean loss has the gradient of one process with the
    whole batch once the engine averages over processes.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def global_sum(value: int, device: torch.device) -> int:
    """Sum of a number over processes, exchanged through `device`."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, device=device)
    dist.all_reduce(total)
    return int(total)


def global_means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars of this process -> their means over processes.

    Each keeps the gradient of this process's own value, so that a function of the means, differentiated on every
    process and averaged over them as engines do, has the gradient that one process with the whole batch would give.
    """
    if world_size() == 1:
        return dict(values)
    stacked = torch.stack(list(values.values()))
    means = stacked.detach().clone()
    dist.all_reduce(means)
    return dict(zip(values, means / world_size() + (stacked - stacked.detach()), strict=True))


def mean_over_global_count(total: Tensor, count: Tensor) -> Tensor:
    """A local loss whose mean over processes is (sum of `total`) / (sum of `count`) of all processes.

    Args:
        total: Sum of this process's token losses.
        count: How many tokens it has, any integer or float scalar.

    Returns:
        Scalar with the gradient of `total`; 0 where no process has a token.
    """
    count = count.to(total.dtype)
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
    return total * world_size() / count.clamp(min=1)
