"""Shapes of which a picture entails a sentence, contradicts it, or leaves it open: what SNLI-VE asks of photographs.

Scenes come in twos, and each is drawn in colour and in black and white. A sentence says that there is a shape of some
colour and kind. It is told of all four pictures: the one scene has the shape, so that its picture in colour entails the
sentence, and the one in black and white leaves it open, for the colour cannot be told; the other scene has no shape of
that kind, so that both of its pictures contradict it. Each scene has as many sentences of its own. So a text alone, a
picture alone, or whether it is in colour, tells no more than that half of all sentences are contradicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.shapes import REALMS
from data_prep.shapes_captions import captions
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_language import NUMBER_WORDS, Claim, thing
from data_prep.shapes_world import Dice, Realm, Scene, draw_scene
from data_prep.sources.snli_ve import LABELS

TOGETHER = 4
"""Pictures that belong together."""
_ENTAILMENT, _NEUTRAL, _CONTRADICTION = LABELS


@dataclass(frozen=True, kw_only=True)
class Related:
    """A drawn picture with sentences about it.

    Attributes:
        number: Of the picture in its split.
        picture: JPEG bytes.
        captions: What is true of it.
        sentences: Texts and their relations.
    """

    number: int
    picture: bytes
    captions: Sequence[str]
    sentences: Sequence[tuple[str, str]]


def draw_related(split: str, size: int, image_size: int, seed: int) -> Iterator[Related]:
    """Draws the pictures of a split.

    Args:
        split: One of `shapes.REALMS`; its scenes are in no other.
        size: How many; a multiple of `TOGETHER`.
        image_size: Width and height in pixels.
        seed: Decides everything.
    """
    for number in range(size // TOGETHER):
        dice = Dice(f"shapes/{seed}/relations/{split}/{number}")
        scenes, claims = draw_two(REALMS[split], dice)
        texts = [claim.text(dice) for claim in claims]
        for place in range(TOGETHER):
            scene, grey = scenes[place // 2], place % 2 == 1
            told = [(text, relation(claim, scene, grey=grey)) for text, claim in zip(texts, claims, strict=True)]
            bare = [f"{NUMBER_WORDS[len(scene)]} shapes in black and white"]
            yield Related(
                number=TOGETHER * number + place,
                picture=draw_picture(scene, image_size, dice, grey=grey),
                captions=bare if grey else captions(scene, dice),
                sentences=dice.order(told),
            )


def relation(claim: Claim, scene: Scene, *, grey: bool) -> str:
    """What a picture of a scene says of a claim that there is a shape."""
    if not any(shape.kind == claim.what.kind for shape in scene):
        return _CONTRADICTION
    if grey:
        return _NEUTRAL
    return _ENTAILMENT if claim.holds(scene) else _CONTRADICTION


def draw_two(realm: Realm, dice: Dice) -> tuple[tuple[Scene, Scene], list[Claim]]:
    """Draws two scenes of a realm, and for each a shape that it has, of a kind that the other has not."""
    while True:
        scenes = draw_scene(realm, dice), draw_scene(realm, dice)
        claims = []
        for own, other in (scenes, scenes[::-1]):
            kinds = {shape.kind for shape in other}
            if alone := [shape for shape in own if shape.kind not in kinds]:
                claims.append(Claim(form="exists", what=thing(dice.pick(alone))))
        if len(claims) == len(scenes):
            return scenes, claims
