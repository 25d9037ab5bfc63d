"""Scenes of coloured shapes: what there is, where, and how one scene becomes a slightly different one.

A scene lives on a board of 64 x 64 units, whatever the pictures' size. Every relation that is talked about is
either clearly true or clearly false of two shapes, or not talked about (see `LEEWAY`).
"""

import itertools
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

BOARD = 64
KINDS = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
RADII = {"small": 4.5, "large": 10.0}
Look = tuple[str, str]
LOOKS: tuple[Look, ...] = tuple((colour, kind) for colour in COLOURS for kind in KINDS)
# One look of every colour, every kind at least once: each colour and each kind is still seen in training.
HELD_OUT: frozenset[Look] = frozenset(
    {
        ("red", "heart"),
        ("orange", "star"),
        ("yellow", "cross"),
        ("green", "circle"),
        ("cyan", "square"),
        ("blue", "triangle"),
        ("purple", "star"),
        ("pink", "heart"),
    }
)
SEEN: tuple[Look, ...] = tuple(look for look in LOOKS if look not in HELD_OUT)

# How far a shape of radius 1 reaches at most, and how far its centre is covered in every direction.
REACH = 1.25
_CORE = {"circle": 1.0, "square": 0.85, "triangle": 0.6, "star": 0.52, "cross": 0.51, "heart": 0.6}
# Centres nearer than this share of the radii would leave too little of the lower shape to see.
_BARE = 0.5
_NUMBERS = ((2, 0.3), (3, 0.35), (4, 0.2), (5, 0.15))
_OVERLAP_SHARE = 0.3
_TRIES = 40


class Dice:
    """Choices that follow from a seed alone, on every Python: only `random()` is promised not to change."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def number(self, low: float, high: float) -> float:
        """A number from low to high."""
        return low + (high - low) * self._random()

    def below(self, limit: int) -> int:
        """A whole number from 0 to limit - 1."""
        return int(self._random() * limit)

    def chance(self, share: float) -> bool:
        """True in this share of the calls."""
        return self._random() < share

    def pick(self, things: Sequence[T]) -> T:
        """One of the things."""
        return things[int(self._random() * len(things))]

    def weighted(self, things: Sequence[tuple[T, float]]) -> T:
        """One of the things, by their weights."""
        rest = self._random() * sum(weight for _, weight in things)
        for thing, weight in things:
            rest -= weight
            if rest < 0:
                return thing
        return things[-1][0]

    def order(self, things: Sequence[T]) -> list[T]:
        """The things in another order."""
        out = list(things)
        for last in range(len(out) - 1, 0, -1):
            other = int(self._random() * (last + 1))
            out[last], out[other] = out[other], out[last]
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape; x and y are its centre in units of the board, y downwards."""

    colour: str
    kind: str
    size: str
    x: int
    y: int

    @property
    def look(self) -> Look:
        """Colour and kind."""
        return (self.colour, self.kind)

    @property
    def radius(self) -> float:
        """Its radius in units of the board."""
        return RADII[self.size]

    def at(self, x: int, y: int) -> "Shape":
        """The shape at another place."""
        return Shape(colour=self.colour, kind=self.kind, size=self.size, x=x, y=y)


Scene = tuple[Shape, ...]


def overlap(one: Shape, other: Shape) -> bool:
    """Whether two shapes of a valid scene lie over each other; otherwise they are clearly apart."""
    return math.hypot(one.x - other.x, one.y - other.y) <= _overlap_limit(one, other)


def _overlap_limit(one: Shape, other: Shape) -> float:
    return 0.85 * (_CORE[one.kind] * one.radius + _CORE[other.kind] * other.radius)


def _may_stand(one: Shape, other: Shape) -> bool:
    """Two shapes are clearly apart, or clearly overlap without hiding one another."""
    distance = math.hypot(one.x - other.x, one.y - other.y)
    radii = one.radius + other.radius
    if distance >= REACH * radii + 1:
        return True
    # Of two small ones the lower could not be made out; of two of one colour neither could.
    big_enough = "large" in (one.size, other.size) and one.colour != other.colour
    return big_enough and _BARE * radii <= distance <= _overlap_limit(one, other)


def valid(scene: Scene) -> bool:
    """Whether every shape lies on the board, and every two may stand as they do, with at most one overlap."""
    overlaps = 0
    for index, shape in enumerate(scene):
        edge = REACH * shape.radius
        if not (edge <= shape.x <= BOARD - edge and edge <= shape.y <= BOARD - edge):
            return False
        for other in scene[:index]:
            if not _may_stand(shape, other):
                return False
            overlaps += overlap(shape, other)
    return overlaps <= 1


def ownership(scene: Scene) -> int:
    """A number from 0 to 9 that follows from what the scene looks like: it decides which split may have it.

    Places count to four units only, so that a scene and its near double belong to the same split.
    """
    canonical = sorted((s.colour, s.kind, s.size, s.x // 4, s.y // 4) for s in scene)
    return zlib.crc32(repr(canonical).encode()) % 10


@dataclass(frozen=True, kw_only=True)
class Realm:
    """Which scenes a split may have: their looks, the looks of which there must be one, their ownership."""

    looks: tuple[Look, ...]
    needed: tuple[Look, ...] = ()
    owned: frozenset[int]

    def has(self, scene: Scene) -> bool:
        """Whether a scene is valid and belongs here."""
        if self.needed and not any(shape.look in self.needed for shape in scene):
            return False
        return valid(scene) and ownership(scene) in self.owned


def draw_scene(realm: Realm, dice: Dice) -> Scene:
    """Draws scenes until one belongs to the realm."""
    while True:
        scene = _try_scene(realm, dice)
        if scene is None or not valid(scene):
            continue
        # Its mirror images are as good, and looking whether one belongs here is cheaper than a new scene.
        for mirrored in _reflections(scene):
            if realm.has(mirrored):
                return mirrored


def _reflections(scene: Scene) -> Iterator[Scene]:
    for columns, rows, diagonal in itertools.product((False, True), repeat=3):
        mirrored = []
        for shape in scene:
            x = BOARD - shape.x if columns else shape.x
            y = BOARD - shape.y if rows else shape.y
            x, y = (y, x) if diagonal else (x, y)
            mirrored.append(shape.at(x, y))
        yield tuple(mirrored)


def _try_scene(realm: Realm, dice: Dice) -> Scene | None:
    count = dice.weighted(_NUMBERS)
    overlapping = dice.chance(_OVERLAP_SHARE)
    sizes = sorted(dice.pick(("large", "small")) for _ in range(count))  # large ones first: they need room
    novel = dice.below(count) if realm.needed else None
    scene: Scene = ()
    for index, size in enumerate(sizes):
        colour, kind = dice.pick(realm.needed) if index == novel else _next_look(realm, scene, dice)
        shape = Shape(colour=colour, kind=kind, size=size, x=0, y=0)
        placed = place(shape, scene, dice, near=scene[0] if overlapping and index == 1 else None)
        if placed is None:
            return None
        scene = (*scene, placed)
    return tuple(dice.order(scene))


def _next_look(realm: Realm, scene: Scene, dice: Dice) -> Look:
    """Any look, or one that shares its colour or kind with a shape there, so that there is more to count."""
    if scene and dice.chance(0.4):
        model = dice.pick(scene)
        part = dice.below(2)
        return dice.pick([look for look in realm.looks if look[part] == model.look[part]])
    return dice.pick(realm.looks)


def place(shape: Shape, others: Scene, dice: Dice, near: Shape | None = None) -> Shape | None:
    """Finds a place for a shape, over `near` where that is given; None where there is no room."""
    low, high = REACH * shape.radius, BOARD - REACH * shape.radius
    for _ in range(_TRIES):
        if near is None:
            x, y = dice.number(low, high), dice.number(low, high)
        else:
            angle, radii = dice.number(0, 2 * math.pi), shape.radius + near.radius
            distance = dice.number(_BARE * radii, max(_BARE * radii, _overlap_limit(shape, near)))
            x, y = near.x + distance * math.cos(angle), near.y + distance * math.sin(angle)
        moved = shape.at(round(x), round(y))
        if low <= moved.x <= high and low <= moved.y <= high and all(_may_stand(moved, o) for o in others):
            return moved
    return None


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A scene's changed copy, and what was changed: the shape `old` became the shape `new`."""

    scene: Scene
    old: Shape | None
    new: Shape | None


def edits(scene: Scene, change: str, realm: Realm, dice: Dice) -> Iterator[Edit]:
    """Gives changed copies that belong to the realm: look, size, place, swap (of two places) or number."""
    for _ in range(_TRIES):
        index = dice.below(len(scene))
        if realm.needed and scene[index].look not in realm.needed:
            continue
        edit = _EDITS[change](scene, index, realm, dice)
        if edit is not None and realm.has(edit.scene):
            yield edit


def _exchange(scene: Scene, index: int, new: Shape) -> Edit:
    return Edit(scene=(*scene[:index], new, *scene[index + 1 :]), old=scene[index], new=new)


def _edit_look(scene: Scene, index: int, realm: Realm, dice: Dice) -> Edit | None:
    """Another colour or another kind; where the looks leave neither, another look."""
    old, part = scene[index], dice.below(2)
    looks = [look for look in realm.needed or realm.looks if look != old.look]
    near = [look for look in looks if look[part] == old.look[part]]
    colour, kind = dice.pick(near or looks)
    return _exchange(scene, index, replace(old, colour=colour, kind=kind))


def _edit_size(scene: Scene, index: int, realm: Realm, dice: Dice) -> Edit | None:
    old = scene[index]
    return _exchange(scene, index, replace(old, size="small" if old.size == "large" else "large"))


def _edit_place(scene: Scene, index: int, realm: Realm, dice: Dice) -> Edit | None:
    new = place(scene[index], (*scene[:index], *scene[index + 1 :]), dice)
    return None if new is None else _exchange(scene, index, new)


def _edit_swap(scene: Scene, index: int, realm: Realm, dice: Dice) -> Edit | None:
    """Two shapes change places, which keeps the looks and the places but not who is where."""
    other = (index + 1 + dice.below(len(scene) - 1)) % len(scene)
    one, two = scene[index], scene[other]
    changed = list(scene)
    changed[index] = one.at(two.x, two.y)
    changed[other] = two.at(one.x, one.y)
    return Edit(scene=tuple(changed), old=one, new=changed[index])


def _edit_number(scene: Scene, index: int, realm: Realm, dice: Dice) -> Edit | None:
    """One shape more or one less."""
    if len(scene) > 2 and (len(scene) == 5 or dice.chance(0.5)):
        return Edit(scene=(*scene[:index], *scene[index + 1 :]), old=scene[index], new=None)
    colour, kind = dice.pick(realm.needed or realm.looks)
    new = place(Shape(colour=colour, kind=kind, size=dice.pick(tuple(RADII)), x=0, y=0), scene, dice)
    return None if new is None else Edit(scene=(*scene, new), old=None, new=new)


_EDITS = {
    "look": _edit_look,
    "size": _edit_size,
    "place": _edit_place,
    "swap": _edit_swap,
    "number": _edit_number,
}
