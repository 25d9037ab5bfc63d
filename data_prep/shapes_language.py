"""Statements and questions about scenes of shapes, and whether they hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from data_prep.shapes_world import BOARD, HELD_OUT, Dice, Scene, Shape, overlap

Form = Literal["exists", "relation", "overlap", "place", "count"]
# Centres nearer to a dividing line, or to each other, than this are spoken of as neither side of it.
LEEWAY = 5
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")
RELATIONS: dict[str, Callable[[Shape, Shape], int]] = {
    "left of": lambda one, other: other.x - one.x,
    "right of": lambda one, other: one.x - other.x,
    "above": lambda one, other: other.y - one.y,
    "below": lambda one, other: one.y - other.y,
}
_HALVES: dict[str, Callable[[Shape], int]] = {
    "left": lambda shape: BOARD // 2 - shape.x,
    "right": lambda shape: shape.x - BOARD // 2,
    "top": lambda shape: BOARD // 2 - shape.y,
    "bottom": lambda shape: shape.y - BOARD // 2,
}
_EXISTS = ("there is {}", "the picture shows {}", "one of the shapes is {}", "{} is in the picture")
PLACES = ("left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A description of shapes; what it leaves open (None) may be anything."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def fits(self, shape: Shape) -> bool:
        """Whether a shape is one of these."""
        return (
            self.colour in (None, shape.colour) and self.kind in (None, shape.kind) and self.size in (None, shape.size)
        )

    @property
    def held_out(self) -> bool:
        """Whether it names a look that training never shows."""
        return (self.colour, self.kind) in HELD_OUT

    def words(self, number: int = 1) -> str:
        """`small red circle`, or `red shapes` for another number than one."""
        noun = self.kind or "shape"
        if number != 1:
            noun += "es" if noun.endswith("s") else "s"
        return " ".join(word for word in (self.size, self.colour, noun) if word)

    def with_article(self) -> str:
        """`a red circle`, `an orange star`."""
        words = self.words()
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def thing(shape: Shape, *, size: bool = False) -> Thing:
    """Describes a shape by its colour and kind, and its size where wanted."""
    return Thing(size=shape.size if size else None, colour=shape.colour, kind=shape.kind)


def stands(shape: Shape, where: str) -> bool | None:
    """Whether a shape is clearly in a half or quarter of the picture, clearly not, or neither (None)."""
    margins = [_HALVES[half](shape) for half in where.split()]
    if any(margin <= -LEEWAY for margin in margins):
        return False
    return True if all(margin >= LEEWAY for margin in margins) else None


def related(one: Shape, other: Shape, how: str) -> bool | None:
    """Whether a relation clearly holds of two shapes, clearly does not, or neither (None)."""
    margin = RELATIONS[how](one, other)
    return None if abs(margin) < LEEWAY else margin > 0


def _any(answers: Iterator[bool | None]) -> bool | None:
    """Three-valued `any`: True where one is, False where all are, otherwise None."""
    seen = set(answers)
    return True if True in seen else None if None in seen else False


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a statement says.

    Attributes:
        form: Which of the five forms it has.
        what: The shapes it speaks of.
        other: What they are related to, in `relation` and `overlap`.
        detail: The relation or the place.
        number: How many there are, in `count`.
    """

    form: Form
    what: Thing
    other: Thing | None = None
    detail: str = ""
    number: int = 0

    @property
    def kind(self) -> str:
        """The kind of statement that accounts and reports use: existence with a size is a kind of its own."""
        return "size" if self.form == "exists" and self.what.size else self.form

    @property
    def held_out(self) -> bool:
        """Whether it speaks of a look that training never shows."""
        return self.what.held_out or (self.other is not None and self.other.held_out)

    def holds(self, scene: Scene) -> bool | None:
        """Whether it is true of a scene, false of it, or too close to call (None)."""
        found = [shape for shape in scene if self.what.fits(shape)]
        if self.form == "exists":
            return bool(found)
        if self.form == "count":
            return len(found) == self.number
        if self.form == "place":
            return _any(stands(shape, self.detail) for shape in found)
        assert self.other is not None
        others = [shape for shape in scene if self.other.fits(shape)]
        pairs = [(one, other) for one in found for other in others if one is not other]
        if self.form == "overlap":
            return any(overlap(one, other) for one, other in pairs)
        return _any(related(one, other, self.detail) for one, other in pairs)

    def text(self, dice: Dice) -> str:
        """One of its wordings, in lower case without a full stop."""
        what = self.what.with_article()
        if self.form == "count":
            return self._count_text(dice)
        if self.form == "place":
            return dice.pick((f"there is {what}", what + " is")) + f" {place_words(self.detail, dice)}"
        if self.form == "exists":
            return dice.pick(_EXISTS).format(what)
        assert self.other is not None
        other = self.other.with_article()
        if self.form == "overlap":
            return dice.pick((f"{what} overlaps {other}", f"{what} and {other} overlap"))
        return dice.pick((f"{what} is {self.detail} {other}", f"there is {what} {self.detail} {other}"))

    def _count_text(self, dice: Dice) -> str:
        number, noun = NUMBER_WORDS[self.number], self.what.words(self.number)
        verb = "is" if self.number == 1 else "are"
        return dice.pick((f"there {verb} exactly {number} {noun}", f"the picture has exactly {number} {noun}"))


def place_words(where: str, dice: Dice) -> str:
    """`in the left half`, `on the left`, `at the top`, `in the top left`."""
    if " " in where:
        return f"in the {where}"
    edge = "on" if where in ("left", "right") else "at"
    return dice.pick((f"in the {where} half", f"{edge} the {where}"))


def propose(
    kind: str, scene: Scene, focus: Shape | None, dice: Dice, *, held_out: bool = False, sized: bool = False
) -> Claim | None:
    """Says something of this kind that is true of a scene, or None where nothing came to mind.

    Args:
        kind: exists, size, relation, overlap, place or count.
        scene: What it shall be true of.
        focus: The shape to speak of, where it matters which.
        dice: Makes the choices.
        held_out: Whether it must speak of a look that training never shows.
        sized: Whether the shape's size must be named.
    """
    shape = focus or dice.pick([s for s in scene if not held_out or s.look in HELD_OUT])
    if kind == "count":
        what = _countable(shape, dice, held_out=held_out, sized=sized)
        return Claim(form="count", what=what, number=sum(what.fits(s) for s in scene))
    if kind in ("exists", "size"):
        return Claim(form="exists", what=thing(shape, size=kind == "size"))
    what = thing(shape, size=sized or dice.chance(0.2))
    if kind == "place":
        places = [where for where in PLACES if stands(shape, where)]
        return Claim(form="place", what=what, detail=dice.pick(places)) if places else None
    others = [s for s in scene if s.look != shape.look and (kind != "overlap" or overlap(s, shape))]
    if not others:
        return None
    mate = dice.pick(others)
    other = thing(mate, size=dice.chance(0.2))
    if dice.chance(0.5):
        shape, mate, what, other = mate, shape, other, what
    if kind == "overlap":
        return Claim(form="overlap", what=what, other=other)
    relations = [how for how in RELATIONS if related(shape, mate, how)]
    return Claim(form="relation", what=what, other=other, detail=dice.pick(relations)) if relations else None


def _countable(shape: Shape, dice: Dice, *, held_out: bool, sized: bool) -> Thing:
    """Something to count that takes in this shape: reds, circles, small ones, red circles, or all shapes."""
    size = shape.size if sized else None
    if held_out:
        return thing(shape, size=sized)
    options = (
        Thing(size=size, colour=shape.colour),
        Thing(size=size, kind=shape.kind),
        Thing(size=shape.size),
        Thing(size=size, colour=shape.colour, kind=shape.kind),
        Thing(size=size),
    )
    return dice.weighted(tuple(zip(options, (3.0, 3.0, 1.0, 1.0, 1.0), strict=True)))


def questions(scene: Scene, dice: Dice) -> list[dict[str, str]]:
    """Questions that have one short answer in this scene: colours, numbers, places."""
    shape = dice.pick(scene)
    out = [_how_many(scene, shape, dice)]
    for what in (Thing(kind=shape.kind), Thing(size=shape.size, kind=shape.kind)):
        if sum(map(what.fits, scene)) == 1:
            out.append({"question": f"what colour is the {what.words()}?", "answer": shape.colour})
            break
    spot = dice.pick(scene)
    quarters = [where for where in PLACES if " " in where and stands(spot, where)]
    if quarters and sum(map(thing(spot).fits, scene)) == 1:
        out.append({"question": f"where is the {thing(spot).words()}?", "answer": quarters[0]})
    return out


def _how_many(scene: Scene, shape: Shape, dice: Dice) -> dict[str, str]:
    what = _countable(shape, dice, held_out=False, sized=False)
    number = sum(map(what.fits, scene))
    return {"question": f"how many {what.words(2)} are there?", "answer": NUMBER_WORDS[number]}


def yes_or_no(claim: Claim, *, answer: bool) -> dict[str, str]:
    """The question that an existence claim answers."""
    return {"question": f"is there {claim.what.with_article()}?", "answer": "yes" if answer else "no"}
