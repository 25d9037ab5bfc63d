"""Position tables for the model's resolution.

N = 1 + P rows, D width.
"""

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from pipeline.models.vision import resize_positions
from pipeline.precision import at_least_float32


def fit_positions(tensors: Mapping[str, Tensor], name: str, grid: tuple[int, int]) -> dict[str, Tensor]:
    """The same tensors with a (1, N, D) position table resized to a grid of patches.

    A table whose P is a square number is taken to be of a square grid. Any other stays as it is, and fits only a model
    of as many patches.

    Args:
        tensors: By our names.
        name: Of the table; nothing happens where it is not there.
        grid: Rows and columns of patches that the model has.
    """
    table_1ND = tensors.get(name)
    if table_1ND is None or table_1ND.ndim != 3:
        return dict(tensors)
    patches = table_1ND.shape[1] - 1
    side = isqrt(patches)
    if side * side != patches:
        return dict(tensors)
    return {**tensors, name: resize_positions(at_least_float32(table_1ND), (side, side), grid)}
