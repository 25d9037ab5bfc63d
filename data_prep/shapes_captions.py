"""Captions of scenes of shapes: five that differ in what they tell, in what order and in which words."""

from collections.abc import Callable, Sequence

from data_prep.shapes_language import (
    NUMBER_WORDS,
    PLACES,
    RELATIONS,
    Thing,
    place_words,
    related,
    stands,
    thing,
)
from data_prep.shapes_world import HELD_OUT, Dice, Scene, Shape, overlap

CAPTIONS = 5
_MENTIONED = 3


def captions(scene: Scene, dice: Dice) -> list[str]:
    """Five differing captions; each tells of all shapes, or of three of them where there are more.

    Where the scene has shapes of held-out looks, each caption tells of one.
    """
    out: list[str] = []
    styles = dice.order(_STYLES)
    attempt = 0
    while len(out) < CAPTIONS:
        caption = styles[attempt % len(styles)](_chosen(scene, dice), scene, dice)
        attempt += 1
        if caption not in out:
            out.append(caption)
    return out


def _chosen(scene: Scene, dice: Dice) -> list[Shape]:
    """Up to three shapes in telling order, with at least one of a held-out look where there are any."""
    order = dice.order(scene)
    chosen = order[:_MENTIONED]
    novel = [shape for shape in order if shape.look in HELD_OUT]
    if novel and not any(shape in novel for shape in chosen):
        chosen[dice.below(len(chosen))] = novel[0]
    return chosen


def _named(shape: Shape, dice: Dice, share: float = 0.6) -> str:
    return thing(shape, size=dice.chance(share)).with_article()


def _joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _listing(chosen: list[Shape], scene: Scene, dice: Dice) -> str:
    rest = [shape for shape in scene if shape not in chosen]
    mentioned = dice.order([*chosen, *rest[:1]])
    start = dice.pick(("", "", "a picture of ", "there is "))
    return start + _joined([_named(shape, dice) for shape in mentioned])


def _sited(shape: Shape, dice: Dice) -> str:
    """A shape and where it is, as closely as can be said."""
    places = [where for where in PLACES if stands(shape, where)]
    if not places:
        return _named(shape, dice)
    where = places[-1] if dice.chance(0.7) else dice.pick(places)
    return f"{_named(shape, dice, 0.4)} {place_words(where, dice)}"


def _places(chosen: list[Shape], scene: Scene, dice: Dice) -> str:
    return _joined([_sited(shape, dice) for shape in chosen])


def _link(one: Shape, other: Shape, dice: Dice) -> str:
    """How two shapes stand to each other."""
    if overlap(one, other):
        return "overlapping"
    relations = [how for how in RELATIONS if related(one, other, how)]
    return dice.pick(relations) if relations else "with"


def _related(chosen: list[Shape], scene: Scene, dice: Dice) -> str:
    one, other = chosen[:2]
    start = f"{_named(one, dice)} {_link(one, other, dice)} {_named(other, dice)}"
    rest = [_sited(shape, dice) if dice.chance(0.5) else _named(shape, dice) for shape in chosen[2:]]
    return ", and ".join([start, *rest])


def _counted(chosen: list[Shape], scene: Scene, dice: Dice) -> str:
    number = NUMBER_WORDS[len(scene)]
    if len(chosen) == len(scene):
        return f"{number} shapes: {_joined([_named(shape, dice) for shape in chosen])}"
    told = _joined([_named(shape, dice) for shape in chosen])
    return dice.pick((f"{number} shapes, among them {told}", f"{told} among {number} shapes"))


def _tally(chosen: list[Shape], scene: Scene, dice: Dice) -> str:
    """How many there are of something, then the shapes."""
    model = dice.pick(chosen)
    what = dice.pick((Thing(colour=model.colour), Thing(kind=model.kind), Thing(size=model.size)))
    number = sum(map(what.fits, scene))
    told = _joined([_sited(shape, dice) if dice.chance(0.3) else _named(shape, dice) for shape in chosen])
    return f"{told}; {NUMBER_WORDS[number]} {what.words(number)} in all"


def _sentence(chosen: list[Shape], scene: Scene, dice: Dice) -> str:
    """A whole sentence from the second shape's side."""
    one, other = chosen[1], chosen[0]
    link = _link(one, other, dice)
    verb = "overlaps" if link == "overlapping" else "is" if link == "with" else f"is {link}"
    link_text = f"{verb} in a picture with" if link == "with" else verb
    start = f"{_named(one, dice)} {link_text} {_named(other, dice)}"
    return start + "".join(f" and there is {_sited(shape, dice)}" for shape in chosen[2:])


_STYLES: tuple[Callable[[list[Shape], Scene, Dice], str], ...] = (
    _listing,
    _places,
    _related,
    _counted,
    _tally,
    _sentence,
)
