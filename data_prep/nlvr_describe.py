"""Descriptions of drawn NLVR scenes, which say far more than the corpus's statements do.

What people wrote about these pictures fits a quarter of them or more, and a small model that matches such sentences
to pictures learns to tell towers from scattered items and nothing else. A description names what is there.
"""

from collections import Counter
from collections.abc import Sequence

from data_prep.nlvr_draw import COLOURS, SHAPES, Box, Item, Scene
from data_prep.shapes_world import Dice

FEW_ITEMS = 6
"""So many are named one by one."""

MOST_GROUPS = 5
"""Kinds of items that a description lists; with more of them it would be cut off as too long."""

_SIZE_WORDS = {10: "small", 20: "medium", 30: "big"}


def describe(scene: Scene, dice: Dice) -> str:
    """One description, drawn among those that fit the scene."""
    if scene.towers:
        return _towers(scene.boxes, dice)
    if len(scene.items()) <= FEW_ITEMS:
        return f"in all there are {' '.join(_item(item) for item in dice.order(list(scene.items())))}"
    short = [box for box in scene.boxes if len(_groups(box)) <= MOST_GROUPS]
    if short and dice.chance(0.7):
        return f"a box has {_listed(_groups(dice.pick(short)), dice)}"
    return f"in all there are {_listed(_totals(scene.items(), by_colour=dice.chance(0.5)), dice)}"


def _towers(boxes: Sequence[Box], dice: Dice) -> str:
    """The colours of all towers, from their bases up or from their tops down."""
    upwards = dice.chance(0.5)
    told = [" ".join(item.colour for item in (box if upwards else reversed(box))) for box in dice.order(list(boxes))]
    return f"the towers from {'base to top' if upwards else 'top to base'} are {' and '.join(told)}"


def _item(item: Item) -> str:
    return f"a {_SIZE_WORDS[item.size]} {item.colour} {item.shape}"


def _groups(box: Box) -> dict[str, int]:
    """How many items of each colour and shape."""
    return dict(Counter(f"{item.colour} {item.shape}" for item in box))


def _totals(items: Sequence[Item], *, by_colour: bool) -> dict[str, int]:
    counts = Counter(item.colour if by_colour else item.shape for item in items)
    order = COLOURS if by_colour else SHAPES
    return {f"{name} item" if by_colour else name: counts[name] for name in order}


def _listed(counts: dict[str, int], dice: Dice) -> str:
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in dice.order(list(counts.items()))]
    return parts[0] if len(parts) == 1 else f"{' '.join(parts[:-1])} and {parts[-1]}"
