"""Pairs of pictures of shapes, with statements that are true or false of the pair.

As in `shapes`, pairs come in twos: each statement is told of one pair where it is true and of one where it is
false, so that neither the text nor the pictures alone tell anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from data_prep.records import Record
from data_prep.shapes import PAIRS_REALM, describe
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_language import NUMBER_WORDS, Thing, thing
from data_prep.shapes_world import Dice, Realm, Scene, draw_scene, edits

Two = tuple[Scene, Scene]

_FORMS = (("both", 0.35), ("only", 0.25), ("more", 0.2), ("same", 0.1), ("total", 0.1))
_NUMBERS = (*NUMBER_WORDS, "six", "seven", "eight", "nine", "ten")
_SIDES = ("left", "right")
_TRIES = 24
_OTHERS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class PairClaim:
    """What a statement says of two pictures.

    Attributes:
        form: both (have it), only (one side has it), more (one side has more of it), same (number of it), or
            total (number of it in both together).
        what: The shapes it speaks of.
        side: 0 for left, 1 for right, in `only` and `more`.
        number: How many, in `total`.
    """

    form: str
    what: Thing
    side: int = 0
    number: int = 0

    def holds(self, two: Two) -> bool:
        """Whether it is true of a pair."""
        counts = [sum(map(self.what.fits, scene)) for scene in two]
        here, there = counts[self.side], counts[1 - self.side]
        return {
            "both": here > 0 and there > 0,
            "only": here > 0 and not there,
            "more": here > there,
            "same": here == there,
            "total": here + there == self.number,
        }[self.form]

    def text(self, dice: Dice) -> str:
        """One of its wordings, in lower case without a full stop."""
        one, many, side = self.what.with_article(), self.what.words(2), _SIDES[self.side]
        if self.form == "both":
            return dice.pick((f"both pictures have {one}", f"there is {one} in each picture"))
        if self.form == "only":
            return dice.pick((f"only the {side} picture has {one}", f"{one} is in the {side} picture only"))
        if self.form == "more":
            return f"the {side} picture has more {many} than the {_SIDES[1 - self.side]} one"
        if self.form == "same":
            return f"both pictures have the same number of {many}"
        verb = "is" if self.number == 1 else "are"
        counted = f"{_NUMBERS[self.number]} {self.what.words(self.number)}"
        return f"there {verb} exactly {counted} in the two pictures"


@dataclass(frozen=True, kw_only=True)
class ShapesPairsSplit:
    """A split of pairs of pictures, `KEY.left.jpg` and `KEY.right.jpg`.

    Attributes:
        size: Pairs; an even number, for they come in twos.
        image_size: Width and height of each picture in pixels.
        seed: Decides everything.
    """

    size: int
    image_size: int
    seed: int

    def __len__(self) -> int:
        """How many pairs there are."""
        return self.size

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Draws the pairs of the positions start to stop - 1."""
        for number in range(start // 2, (stop + 1) // 2):
            dice = Dice(f"shapes/{self.seed}/pairs/{number}")
            one, other, claims = draw_quartet(dice)
            for half, two in enumerate((one, other)):
                if start <= 2 * number + half < stop:
                    # Dice of its own: the bytes must not depend on where a shard begins.
                    own = Dice(f"shapes/{self.seed}/pairs/{number}/{half}")
                    yield self._record(two, claims, 2 * number + half, own)

    def _record(self, two: Two, claims: list[tuple[PairClaim, str]], number: int, dice: Dice) -> Record:
        statements = [{"text": text, "label": claim.holds(two), "kind": claim.form} for claim, text in claims]
        drawn = [draw_picture(scene, self.image_size, dice) for scene in two]
        scenes: dict[str, Any] = {side: describe(scene) for side, scene in zip(_SIDES, two, strict=True)}
        return Record(
            key=f"pairs-{number:08d}",
            source="shapes",
            id=f"{self.seed}/pairs/{number}",
            images=dict(zip(_SIDES, drawn, strict=True)),
            statements=dice.order(statements),
            group=str(number // 2),
            fields={"scenes": scenes},
        )


def draw_quartet(dice: Dice, realm: Realm = PAIRS_REALM) -> tuple[Two, Two, list[tuple[PairClaim, str]]]:
    """Draws two pairs of a realm and statements that are true of one of them and false of the other, evenly."""
    first = dice.weighted(_FORMS)
    forms = [first, dice.weighted([form for form in _FORMS if form[0] != first])]
    while True:
        one, changed = _draw_two(dice, realm), dice.chance(0.5)
        for _ in range(_OTHERS):
            other = _changed(one, forms, dice, realm) if changed else _draw_two(dice, realm)
            claims = _claims(forms, one, other, dice)
            if len(set(claims)) == 2 * len(forms):
                return one, other, [(claim, claim.text(dice)) for claim in claims]


def _claims(forms: list[str], one: Two, other: Two, dice: Dice) -> list[PairClaim]:
    """Two claims of each form, as far as they can be found."""
    claims: list[PairClaim] = []
    for form in forms:
        for two, against in ((one, other), (other, one)):
            claim = _claim(form, two, against, dice)
            if claim is None:
                return claims
            claims.append(claim)
    return claims


def _draw_two(dice: Dice, realm: Realm) -> Two:
    """Two scenes that often have a look in common, so that there is something to say of both."""
    left, right = draw_scene(realm, dice), draw_scene(realm, dice)
    if dice.chance(0.6):
        model, index = dice.pick(left), dice.below(len(right))
        new = replace(right[index], colour=model.colour, kind=model.kind)
        shared = (*right[:index], new, *right[index + 1 :])
        right = shared if realm.has(shared) else right
    return (left, right)


def _changed(two: Two, forms: list[str], dice: Dice, realm: Realm) -> Two:
    """The pair with its sides exchanged where that makes a difference, or with one shape of one side changed."""
    left, right = two
    if set(forms) <= {"only", "more"} and dice.chance(0.6):
        return (right, left)
    change = dice.pick(("look", "look", "number"))
    if dice.chance(0.5):
        edit = next(edits(left, change, realm, dice), None)
        return two if edit is None else (edit.scene, right)
    edit = next(edits(right, change, realm, dice), None)
    return two if edit is None else (left, edit.scene)


def _claim(form: str, two: Two, other: Two, dice: Dice) -> PairClaim | None:
    """A claim of this form that is true of one pair and false of the other, if one comes to mind."""
    for _ in range(_TRIES):
        shape = dice.pick(dice.pick(two))
        looks = (thing(shape), Thing(kind=shape.kind), Thing(colour=shape.colour))
        what = looks[0] if form in ("both", "only") and dice.chance(0.7) else dice.pick(looks)
        number = sum(what.fits(shape) for scene in two for shape in scene)
        side = dice.below(2) if form in ("only", "more") else 0
        claim = PairClaim(form=form, what=what, side=side, number=number if form == "total" else 0)
        if claim.holds(two) and not claim.holds(other):
            return claim
    return None
