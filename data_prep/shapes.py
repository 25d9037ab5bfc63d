"""The embedded data set: pictures of coloured shapes drawn from a seed, and what is true and false of them.

Pictures come in twos, A and B. A statement that is true of A and false of B is told of both, and so is one
that is true of B and false of A. So every text is true exactly as often as it is false, and every picture has
as many true statements as false ones: neither the text nor the picture alone tells anything. In a quarter of the
twos B is A with one thing changed. No two splits share a scene, whatever their seeds (`shapes_world.ownership`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.records import Record
from data_prep.shapes_captions import captions
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_language import Claim, propose, questions, yes_or_no
from data_prep.shapes_world import HELD_OUT, SEEN, Dice, Edit, Realm, Scene, draw_scene, edits

REALMS = {
    "train": Realm(looks=SEEN, owned=frozenset(range(7))),
    "val": Realm(looks=SEEN, owned=frozenset({7})),
    "test": Realm(looks=SEEN, owned=frozenset({8})),
    "unseen": Realm(looks=SEEN, needed=tuple(sorted(HELD_OUT)), owned=frozenset(range(10))),
}
PAIRS_REALM = Realm(looks=SEEN, owned=frozenset({9}))

KIND_WEIGHTS = (
    ("exists", 0.40),
    ("size", 0.15),
    ("relation", 0.15),
    ("overlap", 0.05),
    ("place", 0.15),
    ("count", 0.10),
)
# A changed place or size admits no statement of existence in the second slot: it makes up for that elsewhere.
_SECOND_WEIGHTS = (
    ("exists", 0.62),
    ("size", 0.12),
    ("relation", 0.10),
    ("overlap", 0.06),
    ("place", 0.05),
    ("count", 0.05),
)
# Which changes make a statement of each kind false.
_CHANGES = {
    "exists": ("look",),
    "size": ("size", "look"),
    "relation": ("swap", "place", "look"),
    "overlap": ("place", "look"),
    "place": ("place", "swap"),
    "count": ("look", "number"),
}
_SLOTS = 2  # each gives every picture one true and one false statement
_EDITED_SHARE = 0.25
_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One claim for each of two scenes: true of it and false of the other; with their wordings."""

    of_a: Claim
    of_b: Claim
    text_a: str
    text_b: str


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two scenes and the claims that tell them apart."""

    a: Scene
    b: Scene
    slots: Sequence[_Slot]
    edited: bool


@dataclass(frozen=True, kw_only=True)
class ShapesSplit:
    """A split of single pictures.

    Attributes:
        name: One of `REALMS`.
        size: Pictures; an even number, for they come in twos.
        image_size: Width and height in pixels.
        seed: Decides everything.
    """

    name: str
    size: int
    image_size: int
    seed: int

    def __len__(self) -> int:
        """How many pictures there are."""
        return self.size

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Draws the pictures of the positions start to stop - 1."""
        for number in range(start // 2, (stop + 1) // 2):
            name = f"shapes/{self.seed}/{self.name}/{number}"
            twins = draw_twins(REALMS[self.name], Dice(name))
            for half in (0, 1):
                if start <= 2 * number + half < stop:
                    # Dice of its own: the bytes must not depend on where a shard begins.
                    yield self._record(twins, 2 * number + half, Dice(f"{name}/{half}"))

    def _record(self, twins: Twins, number: int, dice: Dice) -> Record:
        first = number % 2 == 0
        scene = twins.a if first else twins.b
        told = captions(scene, dice)
        asked = questions(scene, dice) + _existence_questions(twins, first)
        return Record(
            key=f"{self.name}-{number:08d}",
            source="shapes",
            id=f"{self.seed}/{self.name}/{number}",
            images={"": draw_picture(scene, self.image_size, dice)},
            captions=told,
            statements=dice.order(_statements(twins, first)),
            questions=asked,
            group=str(number // 2),
            fields={"scene": describe(scene)},
        )


def describe(scene: Scene) -> list[dict[str, Any]]:
    """A scene as JSON: what each shape is, and its centre on a board of 64 x 64 units."""
    return [asdict(shape) for shape in scene]


def _statements(twins: Twins, first: bool) -> list[dict[str, Any]]:
    out = []
    for slot in twins.slots:
        for claim, text, true_of_first in ((slot.of_a, slot.text_a, True), (slot.of_b, slot.text_b, False)):
            label = true_of_first == first
            out.append({"text": text, "label": label, "kind": claim.kind, "edited": twins.edited})
    return out


def _existence_questions(twins: Twins, first: bool) -> list[dict[str, str]]:
    """Asks the same of both pictures, so that the answer does not follow from the question."""
    out = []
    for slot in twins.slots:
        if slot.of_a.form == "exists":
            out.append(yes_or_no(slot.of_a, answer=first))
        if slot.of_b.form == "exists":
            out.append(yes_or_no(slot.of_b, answer=not first))
    return out


def draw_twins(realm: Realm, dice: Dice) -> Twins:
    """Draws two scenes of a realm and finds the claims that tell them apart."""
    # Decided before trying: what is hard to find would be rarer otherwise.
    kind, edited = dice.weighted(KIND_WEIGHTS), dice.chance(_EDITED_SHARE)
    while True:
        scene, edit, change = draw_scene(realm, dice), None, ""
        if edited:
            change = dice.pick(_CHANGES[kind])
            edit = next(edits(scene, change, realm, dice), None)
            if edit is None:
                continue
        other = edit.scene if edit else draw_scene(realm, dice)
        finder = _Finder(scene, other, edit, realm, dice, sized=change == "size")
        slots = finder.slots(kind)
        if slots is not None:
            return Twins(a=scene, b=other, slots=slots, edited=edited)


class _Finder:
    """Finds claims that are true of one scene and false of another."""

    def __init__(self, a: Scene, b: Scene, edit: Edit | None, realm: Realm, dice: Dice, *, sized: bool) -> None:
        self._a, self._b, self._dice = a, b, dice
        self._old, self._new = (edit.old, edit.new) if edit else (None, None)
        self._held_out, self._sized = bool(realm.needed), sized

    def slots(self, kind: str) -> list[_Slot] | None:
        """Finds a slot of this kind, then others of whatever kind comes, or gives up with None."""
        found: list[_Slot] = []
        kinds = [kind]
        while len(found) < _SLOTS:
            slot = next(filter(None, (self._slot(kind) for kind in kinds)), None)
            if slot is None or any({slot.of_a, slot.of_b} & {one.of_a, one.of_b} for one in found):
                return None
            found.append(slot)
            kinds = self._dice.order([other for other, _ in KIND_WEIGHTS])
            kinds.insert(0, self._dice.weighted(_SECOND_WEIGHTS))
        return found

    def _slot(self, kind: str) -> _Slot | None:
        of_a = self._claim(kind, self._a, self._b, focus_old=True)
        of_b = self._claim(kind, self._b, self._a, focus_old=False) if of_a else None
        if of_a is None or of_b is None:
            return None
        return _Slot(of_a=of_a, of_b=of_b, text_a=of_a.text(self._dice), text_b=of_b.text(self._dice))

    def _claim(self, kind: str, scene: Scene, other: Scene, *, focus_old: bool) -> Claim | None:
        focus = self._old if focus_old else self._new
        for _ in range(_TRIES):
            claim = propose(kind, scene, focus, self._dice, held_out=self._held_out, sized=self._sized)
            if claim is None or (self._held_out and not claim.held_out):
                continue
            if claim.holds(scene) is True and claim.holds(other) is False:
                return claim
        return None
