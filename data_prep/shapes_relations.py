"""Shapes of which a picture entails a sentence, contradicts it, or leaves it open: what SNLI-VE asks of photographs.

Pictures come in threes that hold the same shapes at other places. A sentence says where a shape is, or how two stand to
each other; it is told of all three pictures, being clearly true of one, clearly false of another, and too close to call
of the third. So every text has each of the three relations equally often, and so has every picture: neither tells
anything alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.shapes import REALMS
from data_prep.shapes_captions import captions
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_language import PLACES, RELATIONS, Claim, thing
from data_prep.shapes_world import Dice, Realm, Scene, draw_scene, place
from data_prep.sources.snli_ve import LABELS

_PLACES_SHARE = 0.75
_DEALS = 100  # of the same shapes, before others are drawn
_OTHERS = {True: (None, False), False: (True, None), None: (False, True)}
"""Whether a claim shall hold of the second and the third scene, by whether it does of the first."""
_RELATION = {True: LABELS[0], None: LABELS[1], False: LABELS[2]}


@dataclass(frozen=True, kw_only=True)
class Related:
    """A drawn picture with sentences about it.

    Attributes:
        number: Of the picture in its split.
        picture: JPEG bytes.
        captions: What is true of it.
        sentences: Texts and their relations, one of each.
    """

    number: int
    picture: bytes
    captions: Sequence[str]
    sentences: Sequence[tuple[str, str]]


def draw_related(split: str, size: int, image_size: int, seed: int) -> Iterator[Related]:
    """Draws the pictures of a split.

    Args:
        split: One of `shapes.REALMS`; its scenes are in no other.
        size: How many; a multiple of three.
        image_size: Width and height in pixels.
        seed: Decides everything.
    """
    for number in range(size // 3):
        name = f"shapes/{seed}/relations/{split}/{number}"
        scenes, claims = draw_three(REALMS[split], Dice(name))
        dice = Dice(f"{name}/words")
        texts = [claim.text(dice) for claim in claims]
        for place_of, scene in enumerate(scenes):
            told = [(text, _RELATION[claim.holds(scene)]) for text, claim in zip(texts, claims, strict=True)]
            yield Related(
                number=3 * number + place_of,
                picture=draw_picture(scene, image_size, dice),
                captions=captions(scene, dice),
                sentences=dice.order(told),
            )


def draw_three(realm: Realm, dice: Dice) -> tuple[tuple[Scene, Scene, Scene], list[Claim]]:
    """Draws three scenes of a realm, and three claims: each is true of one, open of the next, false of the last."""
    while True:
        first = draw_scene(realm, dice)
        second, third = _dealt(first, realm, dice), _dealt(first, realm, dice)
        if second is None or third is None:
            continue
        scenes = (first, second, third)
        claims = _claims(scenes, dice)
        if claims is not None:
            return scenes, claims


def _dealt(scene: Scene, realm: Realm, dice: Dice) -> Scene | None:
    """The same shapes at other places; None where none were found that belong to the realm."""
    for _ in range(_DEALS):
        dealt: Scene = ()
        for shape in sorted(scene, key=lambda one: one.size):  # large ones first: they need room
            placed = place(shape, dealt, dice)
            if placed is None:
                break
            dealt = (*dealt, placed)
        if len(dealt) == len(scene) and realm.has(dealt):
            return dealt
    return None


def _claims(scenes: tuple[Scene, Scene, Scene], dice: Dice) -> list[Claim] | None:
    """Three claims, each true of another scene; more of places than of relations, if there are any."""
    found: dict[bool | None, Claim] = {}
    places, relations = (dice.order(claims) for claims in _conceivable(scenes[0]))
    while (places or relations) and len(found) < len(scenes):
        claims = places if places and (not relations or dice.chance(_PLACES_SHARE)) else relations
        claim = claims.pop()
        of_first = claim.holds(scenes[0])
        others = _OTHERS[of_first]
        if of_first not in found and tuple(claim.holds(scene) for scene in scenes[1:]) == others:
            found[of_first] = claim
    return list(found.values()) if len(found) == len(scenes) else None


def _conceivable(scene: Scene) -> tuple[list[Claim], list[Claim]]:
    """Every place of every shape, and every relation of every two that look different."""
    places = [Claim(form="place", what=thing(one), detail=where) for one in scene for where in PLACES]
    pairs = [(one, other) for one in scene for other in scene if one.look != other.look]
    relations = [
        Claim(form="relation", what=thing(one), other=thing(other), detail=how)
        for one, other in pairs
        for how in RELATIONS
    ]
    return places, relations
