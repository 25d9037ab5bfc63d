"""Coloured shapes, drawn from a seed: the embedded data set, which needs no files.

What is drawn, and what is said about it, is in `data_prep.shapes`.
"""

import functools

from data_prep.errors import UserError
from data_prep.records import Split
from data_prep.shapes import ShapesSplit
from data_prep.shapes_pairs import ShapesPairsSplit
from data_prep.sources import PlannedSplit, SourceConfig, check_sizes

SIZES = {"train": 20_000, "val": 512, "test": 1024, "unseen": 512, "pairs": 0}
SPLITS = tuple(SIZES)
# A change of what is drawn or said for a seed needs another number.
DRAWING = 2


def plan(config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans the splits that are wanted; `pairs` only where its size is given.

    Raises:
        UserError: for an odd size, since pictures come in twos.
    """
    check_sizes(config, SPLITS)
    plans = {}
    for name, size in (SIZES | config.sizes).items():
        if size % 2:
            raise UserError(f"data.sizes.{name}={size} must be even, for drawn pictures come in twos; try {size + 1}")
        if size:
            identity = {
                "drawing": DRAWING,
                "size": size,
                "image_size": config.image_size,
                "seed": config.seed,
            }
            load = functools.partial(_split, name, size, config)
            plans[name] = PlannedSplit(identity=identity, load=load, shuffled=True)
    return plans


def _split(name: str, size: int, config: SourceConfig) -> Split:
    if name == "pairs":
        return ShapesPairsSplit(size=size, image_size=config.image_size, seed=config.seed)
    return ShapesSplit(name=name, size=size, image_size=config.image_size, seed=config.seed)
