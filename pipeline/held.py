"""Parameters that a process holds in part: ZeRO 3 leaves each of them empty, and keeps a shard beside it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def held(parameter: nn.Parameter) -> Tensor:
    """The elements that this process keeps: a flat shard under ZeRO 3, else the parameter itself.

    Parameters of one shape have shards of the same elements.
    """
    shard: Tensor | None = getattr(parameter, "ds_tensor", None)
    return parameter if shard is None else shard


def release(parameters: Sequence[Any]) -> None:
    """Lets go of whole copies that ZeRO 3 has made, so that the next use sees what is changed in shards."""
    gathered = [p for p in parameters if hasattr(p, "ds_tensor") and p.ds_status.name == "AVAILABLE"]
    if gathered:
        gathered[0].partition(gathered)
