"""Position tables for the model's resolution.

N = 1 + P rows, D width.
"""

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from pipeline.models.vision import resize_positions
from pipeline.precision import at_least_float32


def fit_positions(
    tensors: Mapping[str, Tensor], name: str, grid: tuple[int, int], old: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """The same tensors with a (1, N, D) position table resized to a grid of patches.

    Where the table's grid is not known, one whose P is a square number is taken to be of a square grid. Any other stays
    as it is, and fits only a model of as many patches.

    Args:
        tensors: By our names.
        name: Of the table; nothing happens where it is not there.
        grid: Rows and columns of patches that the model has.
        old: Those of the table; None where they are not known.
    """
    table_1ND = tensors.get(name)
    if table_1ND is None or table_1ND.ndim != 3:
        return dict(tensors)
    patches = table_1ND.shape[1] - 1
    side = isqrt(patches)
    known = old or (side, side)
    if known[0] * known[1] != patches:
        return dict(tensors)
    return {**tensors, name: resize_positions(at_least_float32(table_1ND), known, grid)}
