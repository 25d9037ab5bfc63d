"""How many bytes a forward keeps for its backward, and in which modules."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

OUTSIDE = ""
"""What is kept while no module runs: by the losses."""


def saved_bytes(forward: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd saves while `forward` runs.

    A storage counts once, and whole, however many tensors look into it: that is what stays allocated.

    Args:
        forward: Computes something with a gradient.
        parameters: Tensors that are there in any case and do not count.
    """
    return sum(_saved(forward, parameters, lambda: OUTSIDE).values())


def saved_by_module(forward: Callable[[], Any], parameters: Iterable[Tensor], module: nn.Module) -> Mapping[str, int]:
    """The same, by the name of the innermost submodule that ran when a storage was first saved.

    Args:
        forward: Computes something with a gradient.
        parameters: Tensors that are there in any case and do not count.
        module: Whose submodules are told apart, by their names in it; what is saved outside of them stands under "".
    """
    running: list[str] = []
    with _told(module, running):
        return _saved(forward, parameters, lambda: running[-1] if running else OUTSIDE)


def _saved(forward: Callable[[], Any], parameters: Iterable[Tensor], where: Callable[[], str]) -> Mapping[str, int]:
    ignored = {_address(parameter) for parameter in parameters}
    # Kept until the end, so that no address is given out a second time.
    storages: dict[int, tuple[str, torch.UntypedStorage]] = {}

    def look(tensor: Tensor) -> Tensor:
        if _address(tensor) not in ignored:
            storages.setdefault(_address(tensor), (where(), tensor.untyped_storage()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        forward()
    sizes: Counter[str] = Counter()
    for name, storage in storages.values():
        sizes[name] += storage.nbytes()
    return sizes


@contextmanager
def _told(module: nn.Module, running: list[str]) -> Iterator[None]:
    """Keeps the names of the submodules whose forward is under way, the innermost one last."""

    def begin(name: str, *_: Any) -> None:
        running.append(name)

    def end(*_: Any) -> None:
        running.pop()

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if name:
                hooks.callback(part.register_forward_pre_hook(partial(begin, name)).remove)
                hooks.callback(part.register_forward_hook(end, always_call=True).remove)
        yield


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
