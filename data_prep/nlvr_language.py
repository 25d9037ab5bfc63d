"""Claims about drawn NLVR scenes in the words of the corpus, and whether they hold.

A claim is either about the items of the whole picture or says that a number of boxes, or towers, have something
(`nlvr_traits`). None depends on the order of the boxes; truth is three-valued (`nlvr_words`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.nlvr_draw import Item, Scene
from data_prep.nlvr_traits import BOX_TRAITS, TOWER_TRAITS
from data_prep.nlvr_words import (
    PLACE_WEIGHTS,
    PLACES,
    Amount,
    Look,
    Truth,
    amount_near,
    digits,
    in_place,
    look_of,
)
from data_prep.shapes_world import Dice


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a sentence says: its form, its wording, and the scenes that it is true of."""

    form: str
    text: str
    holds: Callable[[Scene], Truth]


def _an_item(scene: Scene, dice: Dice) -> Item:
    return dice.pick(dice.pick(scene.boxes))


# --- The whole picture ---


def _exists(scene: Scene, dice: Dice) -> Claim:
    look = look_of(_an_item(scene, dice), scene, dice)
    text = dice.pick((f"there is {look.one()}", f"there is at least one {look.words()}"))
    return Claim(form="exists", text=text, holds=lambda s: look.count(s.items()) > 0)


def _total(scene: Scene, dice: Dice) -> Claim:
    look = look_of(_an_item(scene, dice), scene, dice)
    amount = amount_near(look.count(scene.items()), dice)
    where = dice.weighted((("", 0.8), (" in total", 0.2)))
    text = f"there {amount.verb} {amount.of(look)}{where}"
    return Claim(form="total", text=text, holds=lambda s: amount.holds(look.count(s.items())))


def _place(scene: Scene, dice: Dice) -> tuple[Look, str, str]:
    place = dice.weighted(PLACE_WEIGHTS)
    there = [item for item in scene.items() if in_place(item, place)]
    item = dice.pick(there) if there else _an_item(scene, dice)
    return look_of(item, scene, dice), place, dice.pick(PLACES[place])


def _placed(look: Look, place: str) -> Callable[[Scene], int]:
    return lambda s: sum(look.fits(item) and in_place(item, place) for item in s.items())


def _place_exists(scene: Scene, dice: Dice) -> Claim:
    look, place, where = _place(scene, dice)
    count = _placed(look, place)
    starts = (f"there is {look.one()}", f"there is at least one {look.words()}", f"there is at least 1 {look.words()}")
    return Claim(form="place exists", text=f"{dice.pick(starts)} {where}", holds=lambda s: count(s) > 0)


def _place_total(scene: Scene, dice: Dice) -> Claim:
    look, place, where = _place(scene, dice)
    count = _placed(look, place)
    amount = amount_near(count(scene), dice)
    text = f"there {amount.verb} {amount.of(look)} {where}"
    return Claim(form="place total", text=text, holds=lambda s: amount.holds(count(s)))


def _place_none(scene: Scene, dice: Dice) -> Claim:
    look, place, where = look_of(_an_item(scene, dice), scene, dice), *_place(scene, dice)[1:]
    count = _placed(look, place)
    if dice.chance(0.5):
        return Claim(form="place no", text=f"there is no {look.words()} {where}", holds=lambda s: count(s) == 0)
    text = f"none of the {look.words(2)} are {where}"

    def holds(s: Scene) -> Truth:
        # Of nothing, or of one thing, nobody says "none of them".
        return count(s) == 0 if look.count(s.items()) > 1 else None

    return Claim(form="place none", text=text, holds=holds)


def _place_all(scene: Scene, dice: Dice) -> Claim:
    look, place, where = _place(scene, dice)
    count = _placed(look, place)
    text = f"{dice.pick(('all the', 'all'))} {look.words(2)} are {where}"

    def holds(s: Scene) -> Truth:
        number = look.count(s.items())
        return count(s) == number if number > 1 else None

    return Claim(form="place all", text=text, holds=holds)


def _end_total(scene: Scene, dice: Dice) -> Claim:
    end, what = dice.pick(((0, "base"), (-1, "top")))
    look = Look(noun="block", colour=dice.pick(scene.boxes)[end].colour)
    amount = amount_near(sum(look.fits(box[end]) for box in scene.boxes), dice, 3)
    text = f"there {amount.verb} {amount.of(look)} as the {what} of a tower"
    return Claim(form="end total", text=text, holds=lambda s: amount.holds(sum(look.fits(b[end]) for b in s.boxes)))


def _known_tower(scene: Scene, dice: Dice) -> Claim:
    """About the tower of a height, where there is one such tower."""
    box = dice.pick(scene.boxes)
    end, what = dice.pick(((0, "base"), (-1, "top")))
    colour, height = box[end].colour, len(box)
    number = digits(height, dice)
    blocks = f"{number} block{'s' * (height != 1)}"
    texts = (
        f"the tower with {blocks} has a {colour} block at the {what}",
        f"the {what} of the tower with {blocks} is {colour}",
    )

    def holds(s: Scene) -> Truth:
        towers = [tower for tower in s.boxes if len(tower) == height]
        return towers[0][end].colour == colour if len(towers) == 1 else None

    return Claim(form="known tower", text=dice.pick(texts), holds=holds)


def _heights(scene: Scene, dice: Dice) -> Claim:
    found = len({len(box) for box in scene.boxes})
    texts = {
        1: ("the three towers have the same height", "all the towers have the same number of blocks"),
        2: ("exactly two towers have the same height", "there are exactly two towers with the same number of blocks"),
        3: ("the three towers are different in height", "each tower has a different number of blocks"),
    }
    return Claim(
        form="heights", text=dice.pick(texts[found]), holds=lambda s: len({len(box) for box in s.boxes}) == found
    )


# --- Boxes and towers that have something ---


def _quantified(kind: str, scene: Scene, dice: Dice) -> Claim | None:
    """How many boxes or towers have a trait that is taken from one of them."""
    proposer, _ = (TOWER_TRAITS if scene.towers else BOX_TRAITS)[kind]
    trait = proposer(dice.pick(scene.boxes), scene, dice)
    if trait is None:
        return None
    noun = "tower" if scene.towers else dice.weighted((("box", 0.8), ("grey box", 0.2)))
    test = trait.test

    def bounds(s: Scene) -> tuple[int, int]:
        truths = [test(box) for box in s.boxes]
        return truths.count(True), 3 - truths.count(False)

    many = "towers" if scene.towers else noun + "es"
    quantity = dice.weighted((("some", 0.4), ("number", 0.38), ("each", 0.12), ("no", 0.1)))
    if quantity == "number":
        amount = amount_near(max(1, bounds(scene)[0]), dice, 3)
        text = _number_text(amount, noun, many, trait.words, dice)
        return Claim(form=kind, text=text, holds=lambda s: amount.holds(*bounds(s)))
    amount = {
        "some": Amount(mode="at least", number=1, words=""),
        "each": Amount(mode="exactly", number=3, words=""),
        "no": Amount(mode="exactly", number=0, words=""),
    }[quantity]
    text = dice.pick(_starts(quantity, noun, many)) + " " + trait.words
    return Claim(form=kind, text=text, holds=lambda s: amount.holds(*bounds(s)))


def _starts(quantity: str, noun: str, many: str) -> tuple[str, ...]:
    if quantity == "some":
        return (
            f"there is a {noun} with",
            f"there is a {noun} with",
            f"there is at least one {noun} with",
            f"there is at least 1 {noun} with",
            f"there is a {noun} which has",
            f"there is a {noun} that has",
            f"at least one of the {many} has",
        )
    if quantity == "each":
        return (f"each {noun} has", f"all the {many} have", f"all three {many} have", f"every {noun} has")
    return (f"there is no {noun} with", f"none of the {many} has")


def _number_text(amount: Amount, noun: str, many: str, words: str, dice: Dice) -> str:
    one = amount.number == 1
    start = f"there {amount.verb} {amount.words} {noun if one else many}"
    have = dice.pick(("with", "with", "which has" if one else "which have", "that has" if one else "that have"))
    texts = (f"{start} {have} {words}", f"{amount.words} of the {many} {'has' if one else 'have'} {words}")
    return dice.weighted(((texts[0], 0.75), (texts[1], 0.25)))


_Proposer = Callable[[Scene, Dice], Claim | None]
_ANY_WHOLE: dict[str, tuple[_Proposer, float]] = {"exists": (_exists, 0.14), "total": (_total, 0.16)}
_ITEM_WHOLE: dict[str, tuple[_Proposer, float]] = _ANY_WHOLE | {
    "place exists": (_place_exists, 0.16),
    "place total": (_place_total, 0.1),
    "place none": (_place_none, 0.1),
    "place all": (_place_all, 0.08),
}
_TOWER_WHOLE: dict[str, tuple[_Proposer, float]] = _ANY_WHOLE | {
    "end total": (_end_total, 0.08),
    "known tower": (_known_tower, 0.06),
    "heights": (_heights, 0.03),
}


def kinds(*, towers: bool) -> tuple[tuple[str, float], ...]:
    """The kinds of claims about scenes of towers or of scattered items, with their weights."""
    whole, traits = (_TOWER_WHOLE, TOWER_TRAITS) if towers else (_ITEM_WHOLE, BOX_TRAITS)
    return (*((kind, weight) for kind, (_, weight) in (whole | traits).items()),)


def propose(kind: str, scene: Scene, dice: Dice) -> Claim | None:
    """A claim of a kind that is likely to be true of a scene, or None where none comes to mind."""
    proposer = (_TOWER_WHOLE if scene.towers else _ITEM_WHOLE).get(kind)
    return proposer[0](scene, dice) if proposer else _quantified(kind, scene, dice)


def sentence(text: str, dice: Dice) -> str:
    """A claim's text with or without a capital and a full stop, as people write it."""
    start = text[0].upper() if dice.chance(0.7) else text[0]
    return start + text[1:] + ("." if dice.chance(0.5) else "")
