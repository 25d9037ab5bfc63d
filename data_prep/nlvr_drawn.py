"""The `drawn` split of NLVR: pictures of the corpus's kind, drawn from a seed, and what is true and false of them.

Pictures come in twos, A and B, as in `data_prep.shapes`: a statement that is true of A and false of B is told of
both, and so is one that is true of B and false of A. So every text is true exactly as often as it is false, and
every picture has two true statements and two false ones. B is A's items dealt anew, as in the corpus, or A with one
thing changed, or another scene.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.nlvr_describe import describe
from data_prep.nlvr_draw import Scene, changed, draw_picture, draw_scene, rearranged
from data_prep.nlvr_language import Claim, kinds, propose, sentence
from data_prep.records import Record
from data_prep.shapes_world import Dice

TwinKind = Literal["rearranged", "changed", "other"]
# In the corpus all are rearranged. From those alone a small model hardly learns to see what is there at all; without
# them it learns to go by what the whole picture holds, which says nothing about the corpus's own statements.
TWINS: tuple[tuple[TwinKind, float], ...] = (("rearranged", 0.5), ("changed", 0.2), ("other", 0.3))
CAPTIONS = 5
_SLOTS = 2  # each gives every picture one true and one false statement
_KINDS = 20  # kinds that are tried for a slot, and claims of a kind
_TRIES = 6
_CAPTION_TRIES = 40
_DESCRIPTIONS = 3


@dataclass(frozen=True, kw_only=True)
class _Told:
    """A claim's text, what it is of, and whether it is the first picture that it is true of."""

    text: str
    form: str
    of_first: bool


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two scenes and the texts that tell them apart."""

    a: Scene
    b: Scene
    told: Sequence[_Told]
    kind: TwinKind


@dataclass(frozen=True, kw_only=True)
class NlvrDrawnSplit:
    """A split of drawn pictures.

    Attributes:
        size: Pictures; an even number, for they come in twos.
        seed: Decides everything.
    """

    size: int
    seed: int

    def __len__(self) -> int:
        """How many pictures there are."""
        return self.size

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Draws the pictures of the positions start to stop - 1."""
        for number in range(start // 2, (stop + 1) // 2):
            name = f"nlvr/drawn/{self.seed}/{number}"
            twins = draw_twins(Dice(name))
            for half in (0, 1):
                if start <= 2 * number + half < stop:
                    # Dice of its own: the bytes must not depend on where a shard begins.
                    yield self._record(twins, 2 * number + half, Dice(f"{name}/{half}"))

    def _record(self, twins: Twins, number: int, dice: Dice) -> Record:
        first = number % 2 == 0
        scene = twins.a if first else twins.b
        # No number of the corpus begins with a letter: nothing drawn is taken for one of its presentations.
        pair = f"drawn-{self.seed}-{number // 2}"
        return Record(
            key=f"drawn-{number:08d}",
            source="nlvr",
            id=f"drawn-{self.seed}-{number}",
            images={"": draw_picture(scene)},
            captions=captions(scene, dice),
            statements=dice.order(_statements(twins, first)),
            group=pair,
            fields={"presentation": pair, "directory": "drawn", "permutation": 0},
        )


def _statements(twins: Twins, first: bool) -> list[dict[str, Any]]:
    return [
        {"text": told.text, "label": told.of_first == first, "kind": told.form, "twin": twins.kind}
        for told in twins.told
    ]


def draw_twins(dice: Dice) -> Twins:
    """Draws two scenes and finds the claims that tell them apart."""
    # Decided before trying: what is hard to find would be rarer otherwise.
    kind = dice.weighted(TWINS)
    while True:
        a = draw_scene(dice)
        b = _other(a, kind, dice)
        told = _find(a, b, dice) if b is not None else None
        if b is not None and told is not None:
            return Twins(a=a, b=b, told=told, kind=kind)


def _other(scene: Scene, kind: TwinKind, dice: Dice) -> Scene | None:
    if kind == "rearranged":
        return rearranged(scene, dice)
    return changed(scene, dice) if kind == "changed" else draw_scene(dice, scene.towers)


def _find(a: Scene, b: Scene, dice: Dice) -> list[_Told] | None:
    """Finds as many claims that are true of the one scene alone as of the other alone, or gives up with None."""
    weights = kinds(towers=a.towers)
    found: dict[str, _Told] = {}
    for number in range(2 * _SLOTS):
        first = number % 2 == 0
        scene, other = (a, b) if first else (b, a)
        for _ in range(_KINDS):
            claim = _claim(dice.weighted(weights), scene, other, dice)
            if claim is not None and claim.text not in found:
                found[claim.text] = _Told(text=sentence(claim.text, dice), form=claim.form, of_first=first)
                break
        else:
            return None
    return list(found.values())


def _claim(kind: str, scene: Scene, other: Scene, dice: Dice) -> Claim | None:
    for _ in range(_TRIES):
        claim = propose(kind, scene, dice)
        if claim is not None and claim.holds(scene) is True and claim.holds(other) is False:
            return claim
    return None


def captions(scene: Scene, dice: Dice) -> list[str]:
    """True sentences about a scene: descriptions of it first, then claims as people make them."""
    found = list(dict.fromkeys(describe(scene, dice) for _ in range(_DESCRIPTIONS)))
    weights = kinds(towers=scene.towers)
    for _ in range(_CAPTION_TRIES):
        claim = propose(dice.weighted(weights), scene, dice)
        if claim is not None and claim.text not in found and claim.holds(scene) is True:
            found.append(claim.text)
        if len(found) == CAPTIONS:
            break
    return [sentence(text, dice) for text in found]
