"""Scenes of the kind that NLVR shows, drawn from a seed, and their pictures: three boxes of scattered items or towers.

Pictures are 400 x 100 pixels: three light boxes of 100 x 100 with bars of 50 between them. Scattered items are
circles, triangles and squares of 10, 20 or 30 pixels; towers are squares of 20 with a gap of one pixel between
them, one tower a box. An item either lies flush with a wall or clearly apart from it, so that "touching the wall"
is never a matter of opinion; what touches another item may be (`touching`).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.shapes_world import Dice

SIDE, BAR = 100, 50
COLOURS = ("yellow", "black", "blue")
SHAPES = ("circle", "triangle", "square")
SIZES = (10, 20, 30)
BLOCK, TOWER_X, MAX_BLOCKS, MAX_ITEMS = 20, 40, 4, 8
GROUND, BARS = 211, 128
RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}

# An item that touches no wall keeps this many pixels from it.
_CLEAR = 4
# Nearer than the first is touching, farther than the second is not; between them nothing is said.
_TOUCH, _APART = 2.2, 5.0
_ITEMS = tuple((number, 1.0 if number < MAX_ITEMS else 0.3) for number in range(1, MAX_ITEMS + 1))
_BLOCKS = ((1, 0.22), (2, 0.27), (3, 0.27), (4, 0.24))
# A share of the scenes has few things in it: what they are is then all that there is to see. From crowded boxes alone,
# which hold every colour and shape, a small model learns nothing for very long.
_SPARSE_SHARE = 0.5
_FEW = ((1, 0.6), (2, 0.4))
_WALL_X = (("far", 0.24), ("near", 0.07), ("", 0.69))
_NEIGHBOUR_SHARE = 0.2
_TOWERS_SHARE = 0.5
_TRIES = 30
# Run lengths alone: such flat pictures are small anyway, and it is the fastest way.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
_FINE = 16  # subpixels a side, for edges as soft as the corpus has them


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item; x and y are its left and upper edge in the box, in pixels, y downwards."""

    colour: str
    shape: str
    size: int
    x: int
    y: int

    def walls(self) -> frozenset[str]:
        """The walls of the box that it touches: left, right, top, bottom."""
        return _walls(self.x, self.y, self.size)


Box = tuple[Item, ...]
Numbers = tuple[tuple[int, float], ...]
"""How many things, with weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Three boxes; those of towers list their blocks from the base to the top."""

    towers: bool
    boxes: tuple[Box, ...]

    def items(self) -> Box:
        """The items of all boxes."""
        return tuple(itertools.chain(*self.boxes))


@functools.cache
def _walls(x: int, y: int, size: int) -> frozenset[str]:
    end = SIDE - size
    found = (("left", x == 0), ("right", x == end), ("top", y == 0), ("bottom", y == end))
    return frozenset(name for name, touched in found if touched)


@functools.lru_cache(maxsize=4096)
def touching(one: Item, other: Item) -> bool | None:
    """Whether two items of a box clearly touch, clearly do not, or neither (None)."""
    near = _gap(one, other)
    if near >= _APART:
        return False
    ends = [_outline(item.shape, item.size) + np.array([item.x, item.y]) for item in (one, other)]
    distance = float(np.sqrt(((ends[0][:, None] - ends[1][None]) ** 2).sum(axis=2).min()))
    return True if distance <= _TOUCH else False if distance >= _APART else None


def _gap(one: Item, other: Item) -> int:
    """Pixels between two items' bounding squares along the axis on which they are farther apart."""
    x = max(one.x - other.x - other.size, other.x - one.x - one.size)
    y = max(one.y - other.y - other.size, other.y - one.y - one.size)
    return max(x, y)


@functools.cache
def _outline(shape: str, size: int) -> NDArray[np.float64]:
    """Points (n, 2) on the outline of a shape in its square, about one a pixel."""
    steps = np.arange(size + 1, dtype=np.float64)
    if shape == "circle":
        angles = np.linspace(0, 2 * math.pi, 4 * size, endpoint=False)
        return (np.stack([np.cos(angles), np.sin(angles)], axis=1) + 1) * (size / 2)
    base = np.stack([steps, np.full_like(steps, size)], axis=1)
    if shape == "triangle":
        return np.concatenate([base] + [np.stack([size / 2 + s * steps / 2, steps], axis=1) for s in (-1, 1)])
    return np.concatenate([base, base[:, ::-1], base * (1, 0), base[:, ::-1] * (0, 1)])


def draw_scene(dice: Dice, towers: bool | None = None) -> Scene:
    """Draws a scene, of towers or of scattered items where that is asked for."""
    if towers is None:
        towers = dice.chance(_TOWERS_SHARE)
    number = _FEW if dice.chance(_SPARSE_SHARE) else _BLOCKS if towers else _ITEMS
    boxes = tuple(_tower(dice, number) if towers else _scatter(dice, number) for _ in range(3))
    return Scene(towers=towers, boxes=boxes)


def tower_of(colours: tuple[str, ...]) -> Box:
    """A tower of blocks with these colours from the base to the top."""
    return tuple(
        Item(colour=colour, shape="square", size=BLOCK, x=TOWER_X, y=SIDE - BLOCK - (BLOCK + 1) * level)
        for level, colour in enumerate(colours)
    )


def _tower(dice: Dice, number: Numbers) -> Box:
    return tower_of(tuple(dice.pick(COLOURS) for _ in range(dice.weighted(number))))


def _scatter(dice: Dice, number: Numbers) -> Box:
    box: Box = ()
    # Now and then all items share colour or shape: chance alone hardly makes such boxes.
    colours = (dice.pick(COLOURS),) if dice.chance(0.12) else COLOURS
    shapes = (dice.pick(SHAPES),) if dice.chance(0.1) else SHAPES
    for _ in range(dice.weighted(number)):
        item = _placed(box, dice.pick(colours), dice.pick(shapes), dice.pick(SIZES), dice)
        box = (*box, item) if item else box
    return box


def _placed(box: Box, colour: str, shape: str, size: int, dice: Dice) -> Item | None:
    """An item at a free place, or None where none is found."""
    for _ in range(_TRIES):
        if box and dice.chance(_NEIGHBOUR_SHARE):
            x, y = _beside(dice.pick(box), size, dice)
        else:
            x, y = _along(size, dice), _along(size, dice)
        item = Item(colour=colour, shape=shape, size=size, x=x, y=y)
        if _fits(item, box):
            return item
    return None


def _along(size: int, dice: Dice) -> int:
    """A place along one axis: at one of its walls or clear of both."""
    where = dice.weighted(_WALL_X)
    if where:
        return SIDE - size if where == "far" else 0
    return _CLEAR + dice.below(SIDE - size - 2 * _CLEAR + 1)


def _beside(other: Item, size: int, dice: Dice) -> tuple[int, int]:
    """A place one pixel beside, above or below another item."""
    middle = (other.size - size) // 2
    places = (
        (other.x + middle, other.y - size - 1),
        (other.x + middle, other.y + other.size + 1),
        (other.x - size - 1, other.y + other.size - size),
        (other.x + other.size + 1, other.y + other.size - size),
    )
    return dice.pick(places)


def _fits(item: Item, box: Box) -> bool:
    clear = all(
        place in (0, SIDE - item.size) or _CLEAR <= place <= SIDE - item.size - _CLEAR for place in (item.x, item.y)
    )
    return clear and all(_gap(item, other) >= 1 for other in box)


def changed(scene: Scene, dice: Dice) -> Scene | None:
    """The scene with one thing changed, or None where the change that was drawn cannot be made."""
    which = dice.below(3)
    box = scene.boxes[which]
    new = dice.pick(_TOWER_CHANGES if scene.towers else _SCATTER_CHANGES)(box, dice)
    if new is None or new == box:
        return None
    return replace(scene, boxes=(*scene.boxes[:which], new, *scene.boxes[which + 1 :]))


def rearranged(scene: Scene, dice: Dice) -> Scene | None:
    """The same items dealt to the boxes anew, or None where they do not fit.

    So NLVR makes the pictures that a statement shall be false of (Suhr et al. 2017): no count over the whole picture
    tells them from those that it is true of.
    """
    items = dice.order([item for box in scene.boxes for item in box])
    room = MAX_BLOCKS if scene.towers else MAX_ITEMS
    boxes: list[Box] = [(), (), ()]
    for number, item in enumerate(items):
        # The first three go to a box each: none is empty.
        open_boxes = [number] if number < 3 else [which for which in range(3) if len(boxes[which]) < room]
        which = dice.pick(open_boxes)
        placed = item if scene.towers else _placed(boxes[which], item.colour, item.shape, item.size, dice)
        if placed is None:
            return None
        boxes[which] = (*boxes[which], placed)
    if scene.towers:
        boxes = [tower_of(tuple(item.colour for item in box)) for box in boxes]
    return replace(scene, boxes=tuple(boxes))


def _recoloured(box: Box, dice: Dice) -> Box | None:
    number = dice.below(len(box))
    item = replace(box[number], colour=dice.pick(COLOURS))
    return (*box[:number], item, *box[number + 1 :])


def _reshaped(box: Box, dice: Dice) -> Box | None:
    number = dice.below(len(box))
    item = replace(box[number], shape=dice.pick(SHAPES))
    return (*box[:number], item, *box[number + 1 :])


def _moved(box: Box, dice: Dice) -> Box | None:
    number = dice.below(len(box))
    rest, old = (*box[:number], *box[number + 1 :]), box[number]
    item = _placed(rest, old.colour, old.shape, dice.pick(SIZES) if dice.chance(0.3) else old.size, dice)
    return (*rest, item) if item else None


def _added(box: Box, dice: Dice) -> Box | None:
    item = _placed(box, dice.pick(COLOURS), dice.pick(SHAPES), dice.pick(SIZES), dice)
    return (*box, item) if item and len(box) < MAX_ITEMS else None


def _removed(box: Box, dice: Dice) -> Box | None:
    number = dice.below(len(box))
    return (*box[:number], *box[number + 1 :]) if len(box) > 1 else None


def _raised(box: Box, dice: Dice) -> Box | None:
    colours = (*(item.colour for item in box), dice.pick(COLOURS))
    return tower_of(colours) if len(colours) <= MAX_BLOCKS else None


def _lowered(box: Box, dice: Dice) -> Box | None:
    return box[:-1] if len(box) > 1 else None


def _reordered(box: Box, dice: Dice) -> Box | None:
    return tower_of(tuple(dice.order([item.colour for item in box])))


_Change = Callable[[Box, Dice], Box | None]
_SCATTER_CHANGES: tuple[_Change, ...] = (_recoloured, _reshaped, _moved, _added, _removed)
_TOWER_CHANGES: tuple[_Change, ...] = (_recoloured, _raised, _lowered, _reordered)


def draw_picture(scene: Scene) -> bytes:
    """Draws a scene as a PNG of 400 x 100 pixels."""
    canvas = _empty().copy()
    for item, left in _lefts(scene):
        red, green, blue = RGB[item.colour]
        x, window = left + item.x, slice(item.y, item.y + item.size)
        if item.shape == "square":
            canvas[window, x : x + item.size] = (blue, green, red)
        else:
            canvas[window, x : x + item.size] = _sprite(item.shape, item.size, item.colour)
    done, data = cv2.imencode(".png", canvas, _PNG)
    if not done:
        raise RuntimeError("OpenCV cannot write PNG pictures")
    return bytes(data)


def _lefts(scene: Scene) -> Iterator[tuple[Item, int]]:
    for number, box in enumerate(scene.boxes):
        for item in box:
            yield item, number * (SIDE + BAR)


@functools.cache
def _empty() -> NDArray[np.uint8]:
    canvas = np.full((SIDE, 3 * SIDE + 2 * BAR, 3), GROUND, dtype=np.uint8)
    for bar in (SIDE, 2 * SIDE + BAR):
        canvas[:, bar : bar + BAR] = BARS
    return canvas


@functools.cache
def _sprite(shape: str, size: int, colour: str) -> NDArray[np.uint8]:
    """A circle or triangle with soft edges on the boxes' ground, (size, size, 3) in OpenCV's order."""
    place = (np.arange(size * _FINE) + 0.5) / _FINE
    x, y = place[None, :] - size / 2, place[:, None]
    inside = x**2 + (y - size / 2) ** 2 <= (size / 2) ** 2 if shape == "circle" else abs(x) <= y / 2
    cover = inside.reshape(size, _FINE, size, _FINE).mean(axis=(1, 3))[..., None]
    ink = np.array(RGB[colour][::-1], dtype=np.float64)
    out: NDArray[np.uint8] = np.rint(GROUND + cover * (ink - GROUND)).astype(np.uint8)
    return out
