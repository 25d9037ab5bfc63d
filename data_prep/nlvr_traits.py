"""What a box or a tower of a drawn NLVR scene may have: descriptions of one box, with their truth.

Each function proposes one thing that is true of the box it is given, or nearly, or None where it finds nothing.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.nlvr_draw import Box, Scene, touching
from data_prep.nlvr_words import (
    PLACE_WEIGHTS,
    PLACES,
    Amount,
    Look,
    Truth,
    all_of,
    amount_near,
    any_of,
    digits,
    in_place,
    listed,
    look_of,
)
from data_prep.shapes_world import Dice

# A topmost item is one only if the next one begins this many pixels lower.
_ON_TOP = 6


@dataclass(frozen=True, kw_only=True)
class Trait:
    """What a box or tower may have; words follow "with" or "has"."""

    words: str
    test: Callable[[Box], Truth]


def _item_count(box: Box, scene: Scene, dice: Dice) -> Trait:
    noun = "block" if scene.towers else dice.pick(("item", "object"))
    look, amount = Look(noun=noun), amount_near(len(box), dice)
    if dice.chance(0.25):
        amount = Amount(mode="exactly", number=len(box), words=f"only {digits(len(box), dice)}")
    return Trait(words=amount.of(look), test=lambda b: amount.holds(len(b)))


def _look_count(box: Box, scene: Scene, dice: Dice) -> Trait:
    look = look_of(dice.pick(box), scene, dice)
    if dice.chance(0.35):
        return Trait(words=look.one(), test=lambda b: look.count(b) > 0)
    amount = amount_near(look.count(box), dice)
    return Trait(words=amount.of(look), test=lambda b: amount.holds(look.count(b)))


def _several(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """Two or three looks at once, each with an amount; none of them includes another."""
    looks: list[Look] = []
    for item in dice.order(box)[: dice.pick((2, 2, 3))]:
        look = look_of(item, scene, dice)
        if not any(_compatible(look, known) for known in looks):
            looks.append(look)
    if len(looks) < 2:
        return None
    parts: list[tuple[Look, Amount]] = []
    for look in looks:
        some = Amount(mode="at least", number=1, words="a")
        parts.append((look, some if dice.chance(0.6) else amount_near(look.count(box), dice)))
    words = [amount.of(look) for look, amount in parts]
    return Trait(words=listed(words), test=lambda b: all_of(a.holds(look.count(b)) for look, a in parts))


def _compatible(one: Look, other: Look) -> bool:
    """Whether an item may fit both descriptions."""
    pairs = ((one.colour, other.colour), (one.shape, other.shape), (one.size, other.size))
    return all(a is None or b is None or a == b for a, b in pairs)


def _inventory(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """Everything in the box, by colour and shape."""
    counts: dict[tuple[str, str], int] = {}
    for item in box:
        counts[item.colour, item.shape] = counts.get((item.colour, item.shape), 0) + 1
    if scene.towers or not 1 < len(counts) <= 3:
        return None
    words = []
    for (colour, shape), number in dice.order(list(counts.items())):
        number_words = "a" if number == 1 else digits(number, dice)
        words.append(f"{number_words} {colour} {shape}{'s' * (number != 1)}")

    def test(b: Box) -> bool:
        return sorted((i.colour, i.shape) for i in b) == sorted((i.colour, i.shape) for i in box)

    return Trait(words=f"only {listed(words)}", test=test)


def _colours(box: Box, scene: Scene, dice: Dice) -> Trait:
    noun = "blocks" if scene.towers else "items"
    found = sorted({item.colour for item in box})
    if len(found) < 3 and dice.chance(0.6):
        return _only_colours(frozenset(found), noun, dice)
    number = len(found)
    words = {
        1: (f"{noun} of only one color", f"{noun} of the same color"),
        2: (f"{noun} of exactly 2 different colors", f"{noun} of only two colors"),
        3: (f"{noun} of all 3 different colors", f"{noun} of all three colors"),
    }

    def test(b: Box) -> Truth:
        # One item alone is hardly "items of the same color".
        return len({item.colour for item in b}) == number if number > 1 or len(b) > 1 else None

    return Trait(words=dice.pick(words[number]), test=test)


def _only_colours(colours: frozenset[str], noun: str, dice: Dice) -> Trait:
    names = " and ".join(dice.order(sorted(colours)))

    def test(b: Box) -> Truth:
        found = {item.colour for item in b}
        if found < colours or (found == colours and len(b) == 1):
            return None
        return found == colours

    return Trait(words=dice.pick((f"only {names} {noun}", f"{noun} of only {names} color")), test=test)


def _part(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """So many items, and how many of them have a colour."""
    noun = "block" if scene.towers else "item"
    colour = dice.pick(box).colour
    count, part = len(box), sum(item.colour == colour for item in box)
    if count < 2 or part == count:
        return None
    verb = "is" if part == 1 else "are"
    words = f"{digits(count, dice)} {noun}s of which {dice.pick(('', 'exactly '))}{digits(part, dice)} {verb} {colour}"

    def test(b: Box) -> Truth:
        return None if len(b) > count else len(b) == count and sum(item.colour == colour for item in b) == part

    return Trait(words=words, test=test)


def _item_place(box: Box, scene: Scene, dice: Dice) -> Trait:
    look, place = look_of(dice.pick(box), scene, dice), dice.weighted(PLACE_WEIGHTS)
    amount = amount_near(sum(look.fits(i) and in_place(i, place) for i in box), dice)
    where = dice.pick([words for words in PLACES[place] if not words.endswith("box")])
    if dice.chance(0.6):
        amount = Amount(mode="at least", number=1, words="a")
    return Trait(
        words=f"{amount.of(look)} {where}",
        test=lambda b: amount.holds(sum(look.fits(i) and in_place(i, place) for i in b)),
    )


def _item_touch(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    pairs = [(one, other) for one in box for other in box if one is not other and touching(one, other)]
    if not pairs:
        return None
    one, other = (look_of(item, scene, dice) for item in dice.pick(pairs))
    how = dice.pick(("touching", "closely touching"))

    def test(b: Box) -> Truth:
        return any_of(touching(i, j) for i in b for j in b if i is not j and one.fits(i) and other.fits(j))

    return Trait(words=f"{one.one()} {how} {other.one()}", test=test)


def _item_top(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    if len(box) < 2:
        return None
    look = look_of(min(box, key=lambda item: item.y), scene, dice)

    def test(b: Box) -> Truth:
        order = sorted(b, key=lambda item: item.y)
        clear = len(b) > 1 and order[1].y - order[0].y >= _ON_TOP
        return look.fits(order[0]) if clear else None if look.count(b) else False

    return Trait(words=f"{look.one()} on top", test=test)


def _same_size(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    pairs = [(one, other) for one in box for other in box if one is not other and one.size == other.size]
    if not pairs:
        return None
    first, second = dice.pick(pairs)
    one, other = (Look(noun="item", colour=item.colour, shape=item.shape) for item in (first, second))
    if one == other:
        return None

    def test(b: Box) -> bool:
        return any(one.fits(i) and other.fits(j) and i.size == j.size for i in b for j in b)

    return Trait(words=f"{one.one()} and {other.one()} of the same size", test=test)


def _level(box: Box, scene: Scene, dice: Dice) -> Trait:
    """The colour at one place of a tower."""
    which = dice.pick(("base", "top", "second", "middle"))
    if which in ("base", "top"):
        index = 0 if which == "base" else -1
        colour = box[index].colour
        words = dice.pick((f"a {colour} block at the {which}", f"a {colour} block as the {which}"))
        return Trait(words=words, test=lambda b: b[index].colour == colour)
    if which == "second" or len(box) != 3:
        colour = box[min(1, len(box) - 1)].colour
        words = f"a {colour} block as the second block from the base"
        return Trait(words=words, test=lambda b: len(b) > 1 and b[1].colour == colour)
    colour = box[1].colour

    def test(b: Box) -> Truth:
        return len(b) == 3 and b[1].colour == colour if len(b) < 4 else None

    return Trait(words=f"a {colour} block {dice.pick(('in the middle', 'as the middle block'))}", test=test)


def _ends(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """The colours of base and top."""
    if len(box) < 2:
        return None
    base, top = box[0].colour, box[-1].colour
    if base == top and dice.chance(0.6):
        words = dice.pick(("a base and a top of the same color", "the same color at the base and the top"))
        return Trait(words=words, test=lambda b: b[0].colour == b[-1].colour if len(b) > 1 else None)
    words = dice.pick(
        (
            f"a {top} block at the top and a {base} block at the base",
            f"a {base} block at the base and a {top} block at the top",
        )
    )
    return Trait(
        words=words,
        test=lambda b: (b[0].colour, b[-1].colour) == (base, top) if len(b) > 1 else None if base == top else False,
    )


def _above(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """One block right on another."""
    if len(box) < 2:
        return None
    level = dice.below(len(box) - 1)
    low, high = box[level].colour, box[level + 1].colour
    if dice.chance(0.3):
        how, first, second = dice.pick(("below", "bellow")), low, high
    else:
        how, first, second = dice.pick(("above", "over", "on", "on top of")), high, low

    def test(b: Box) -> Truth:
        colours = [item.colour for item in b]
        if (low, high) in itertools.pairwise(colours):
            return True
        # With something between them it is above all the same, if not on it.
        apart = any(one == low and high in colours[place + 2 :] for place, one in enumerate(colours))
        return None if apart else False

    return Trait(words=f"a {first} block {how} a {second} block", test=test)


def _stacked(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """Two blocks of one colour, one right on the other."""
    found = [one.colour for one, other in itertools.pairwise(box) if one.colour == other.colour]
    if not found:
        return None
    colour, number = dice.pick(found), dice.pick(("2", "two", "at least 2"))

    def test(b: Box) -> Truth:
        if not any(i.colour == j.colour == colour for i, j in itertools.pairwise(b)):
            return False
        return True if number == "at least 2" or sum(item.colour == colour for item in b) == 2 else None

    return Trait(words=f"{number} {colour} blocks stacked together", test=test)


def _height_and_end(box: Box, scene: Scene, dice: Dice) -> Trait:
    """So many blocks, and the colour of base or top."""
    amount, (end, what) = amount_near(len(box), dice), dice.pick(((0, "base"), (-1, "top")))
    colour = box[end].colour
    how = dice.pick((f"and a {colour} block at the {what}", f"where the {what} is {colour}"))
    words = f"{amount.of(Look(noun='block'))} {how}"
    return Trait(words=words, test=lambda b: all_of((amount.holds(len(b)), b[end].colour == colour)))


def _whole_tower(box: Box, scene: Scene, dice: Dice) -> Trait | None:
    """The colours of a whole tower of two or three blocks."""
    if len(box) not in (2, 3):
        return None
    colours = [item.colour for item in box]
    middle = f", a {colours[1]} block in the middle" if len(box) == 3 else ""
    words = f"exactly {digits(len(box), dice)} blocks, a {colours[-1]} block at the top{middle} and a {colours[0]} base"
    return Trait(words=words, test=lambda b: [item.colour for item in b] == colours)


Proposer = Callable[[Box, Scene, Dice], Trait | None]
BOX_TRAITS: dict[str, tuple[Proposer, float]] = {
    "items": (_item_count, 0.12),
    "look": (_look_count, 0.22),
    "several": (_several, 0.17),
    "inventory": (_inventory, 0.05),
    "colours": (_colours, 0.12),
    "part": (_part, 0.06),
    "item place": (_item_place, 0.1),
    "touch": (_item_touch, 0.06),
    "on top": (_item_top, 0.06),
    "same size": (_same_size, 0.04),
}
TOWER_TRAITS: dict[str, tuple[Proposer, float]] = {
    "blocks": (_item_count, 0.13),
    "block look": (_look_count, 0.16),
    "several blocks": (_several, 0.05),
    "block colours": (_colours, 0.1),
    "block part": (_part, 0.04),
    "level": (_level, 0.2),
    "ends": (_ends, 0.07),
    "above": (_above, 0.12),
    "stacked": (_stacked, 0.1),
    "height and end": (_height_and_end, 0.08),
    "whole tower": (_whole_tower, 0.03),
}
