"""The words of NLVR's sentences about drawn scenes: descriptions of items, amounts and places.

Truth is three-valued: what people may judge differently, such as "there are two" where there are three, is
neither true nor false (None).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_prep.nlvr_draw import Item, Scene
from data_prep.shapes_world import Dice

Truth = bool | None
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SIZE_WORDS = {10: "small", 20: "medium", 30: "big"}
_MODES = (("exactly", 0.4), ("", 0.3), ("at least", 0.2), ("at most", 0.1))
PLACES = {
    "edge": ("touching the edge", "touching the wall", "touching any edge", "touching an edge", "touching the side"),
    "corner": ("touching the corner", "closely touching a corner", "closely touching a corner of a box"),
    "base": ("touching the base", "closely touching the bottom of a box", "touching the bottom"),
    "right": ("closely touching right wall of a box", "touching the right wall"),
    "top": ("touching the top", "closely touching the roof of a box"),
    "free": ("not touching any edge", "not touching the edge", "not touching the wall"),
}
PLACE_WEIGHTS = (("edge", 0.3), ("base", 0.25), ("free", 0.15), ("corner", 0.1), ("right", 0.1), ("top", 0.1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """A description of items; what it leaves open (None) may be anything."""

    noun: str
    colour: str | None = None
    shape: str | None = None
    size: int | None = None

    def fits(self, item: Item) -> bool:
        """Whether an item is one of these."""
        return (
            self.colour in (None, item.colour) and self.shape in (None, item.shape) and self.size in (None, item.size)
        )

    def count(self, items: Sequence[Item]) -> int:
        """How many of the items are."""
        return sum(map(self.fits, items))

    def words(self, number: int = 1) -> str:
        """`small blue circle`, or `yellow items` for another number than one."""
        noun = (self.shape or self.noun) + ("" if number == 1 else "s")
        return " ".join(word for word in (_SIZE_WORDS.get(self.size or 0), self.colour, noun) if word)

    def one(self) -> str:
        """`a blue circle`, `an item`."""
        words = self.words()
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """A number as people give it: exactly, at least, at most, or bare, which leaves more open."""

    mode: str
    number: int
    words: str

    def holds(self, low: int, high: int | None = None) -> Truth:
        """Whether it is the amount of something of which there are low to high."""
        found = {self._of(count) for count in range(low, (low if high is None else high) + 1)}
        return found.pop() if len(found) == 1 else None

    def _of(self, count: int) -> Truth:
        if self.mode == "at least":
            return count >= self.number
        if self.mode == "at most":
            return count <= self.number
        return None if not self.mode and count > self.number else count == self.number

    def of(self, look: Look) -> str:
        """`at least 2 black squares`."""
        return f"{self.words} {look.words(self.number)}"

    @property
    def verb(self) -> str:
        """What follows `there`."""
        return "is" if self.number == 1 else "are"


def digits(number: int, dice: Dice) -> str:
    """A number up to twelve, in digits or as a word."""
    return str(number) if dice.chance(0.4) else _WORDS[number]


def amount_near(count: int, dice: Dice, limit: int = 12) -> Amount:
    """An amount near a count, most often true of it."""
    mode = dice.weighted(_MODES)
    number = min(limit, max(1, count + dice.weighted(((0, 0.75), (1, 0.1), (-1, 0.15)))))
    return Amount(mode=mode, number=number, words=f"{mode} {digits(number, dice)}".lstrip())


def look_of(item: Item, scene: Scene, dice: Dice) -> Look:
    """A description of an item, more or less specific."""
    if scene.towers:
        return Look(noun="block", colour=item.colour)
    noun = dice.weighted((("item", 0.65), ("object", 0.35)))
    kind = dice.weighted((("both", 0.5), ("colour", 0.25), ("shape", 0.15), ("size", 0.1)))
    if kind == "size":
        return Look(noun=noun, colour=item.colour, shape=dice.pick((item.shape, None)), size=item.size)
    return Look(
        noun=noun,
        colour=item.colour if kind != "shape" else None,
        shape=item.shape if kind != "colour" else None,
    )


def in_place(item: Item, place: str) -> bool:
    """Whether an item is at one of `PLACES`."""
    walls = item.walls()
    if place == "corner":
        return len(walls) == 2
    if place in ("edge", "free"):
        return bool(walls) == (place == "edge")
    return {"base": "bottom"}.get(place, place) in walls


def all_of(truths: Iterable[Truth]) -> Truth:
    """Three-valued `all`."""
    found = set(truths)
    return False if False in found else None if None in found else True


def any_of(truths: Iterable[Truth]) -> Truth:
    """Three-valued `any`."""
    found = set(truths)
    return True if True in found else None if None in found else False


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
