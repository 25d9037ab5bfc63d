"""torch.compile for transformer blocks, each by itself ("regional compilation")."""

from collections.abc import Iterator

import torch
from torch import nn

from pipeline.models.blocks import Block

_COMPILATIONS = 64


def compile_blocks(
    module: nn.Module, *, dynamic: bool = False, fullgraph: bool = False, backend: str = "inductor"
) -> None:
    """Have torch.compile make all blocks of a module, each by itself.

    Blocks that differ in their weights alone share one compilation for each shape and gradient mode, so twelve layers
    take the time of one; what methods do between blocks (choosing tokens) stays as it is. Nothing is compiled before
    the first call.

    Args:
        module: With blocks anywhere in it; a copy of it, such as a momentum tower, has to be given too.
        dynamic: Whether one compilation serves all shapes; else each shape has its own, which is faster.
        fullgraph: Whether what cannot be compiled is an error instead of a break.
        backend: Of torch.compile.
    """
    # All blocks go through one function of torch, which keeps 8 compilations by default and then gives up in silence: a
    # step with four stages of tokens, two towers, a text encoder and fusion has more.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _COMPILATIONS)
    for block in _blocks(module):
        block.compile(dynamic=dynamic, fullgraph=fullgraph, backend=backend)


def leave_uncompiled(module: nn.Module) -> None:
    """Undo `compile_blocks`."""
    for block in _blocks(module):
        block._compiled_call_impl = None


def _blocks(module: nn.Module) -> Iterator[Block]:
    return (part for part in module.modules() if isinstance(part, Block))
