"""A sample as it lies in its shard, and what is read of it: a caption, statement, relation or question, or an image.

Of pairs it is a statement with both pictures.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.sources.snli_ve import LABELS
from pipeline.data.decode import BadSample, Encoded


@dataclass(frozen=True, kw_only=True)
class EveryImage:
    """Every image once, those of which nothing is told too: what candidates and classification want.

    Attributes:
        label: Path of the field of KEY.json whose values go with the image as its text, a JSON list: names and numbers
            joined by dots, ``*`` for all entries of a list, such as ``scene.*.kind``. None for an empty list.
    """

    label: str | None = None

    def __str__(self) -> str:
        """As errors name it."""
        return "images"


TextKind = Literal["captions", "statements", "relations", "questions", "answers", "pairs"] | EveryImage
"""What goes with a picture; a relation is a statement with its label of three classes (SNLI-VE), ``answers`` are the
questions that annotators have answered, and ``pairs`` are the statements about two pictures (NLVR2)."""

ASKED: tuple[TextKind, ...] = ("questions", "answers")
"""Kinds of which the text is a question."""

_NUMBERS = ("coco_id", "img_id", "image_id")
_PATH = re.compile(r".*/.*|.*\.(?:jpe?g|png|webp)", re.DOTALL | re.IGNORECASE)

SIDES = ("left", "right")
"""Of the pictures of a pair, in their order."""


def pictures_of(kind: TextKind) -> int:
    """How many pictures go with one text."""
    return len(SIDES) if kind == "pairs" else 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample as it lies in its shard.

    Attributes:
        key: its name in the split.
        images: encoded pictures, where they lie in what was read; {"": data}, or {"left": data, "right": data} for a
            pair.
        fields: what KEY.json says; "captions" is always there.
    """

    key: str
    images: dict[str, Encoded]
    fields: dict[str, Any]

    @property
    def image(self) -> Encoded:
        """The only picture of the sample."""
        if "" not in self.images:
            raise BadSample(f"has the pictures {sorted(self.images)} where one is wanted")
        return self.images[""]

    def pictures(self, kind: TextKind) -> tuple[Encoded, ...]:
        """What goes with one text: the only picture, or the left and the right one.

        Raises:
            BadSample: there are others.
        """
        if kind != "pairs":
            return (self.image,)
        if set(self.images) != set(SIDES):
            raise BadSample(f"has {len(self.images)} picture where a left and a right one are wanted")
        return tuple(self.images[side] for side in SIDES)

    @property
    def captions(self) -> list[str]:
        """All captions; none for a picture of which nothing true is known."""
        captions: list[str] = self.fields["captions"]
        return captions

    @property
    def id(self) -> str:
        """What it is called in its data set; its key where nobody says."""
        return str(self.fields.get("id", self.key))

    @property
    def number(self) -> int | None:
        """Its picture's number at the data set, of a sample that is called by a path, as those of ALBEF's lists are.

        Others are called as their own data set calls them, and may have another's number besides (Visual Genome).
        """
        if not _PATH.fullmatch(self.id):
            return None
        return next((number for name in _NUMBERS if type(number := self.fields.get(name)) is int), None)

    @property
    def group(self) -> str:
        """What the sample is counted with; its key where it stands alone."""
        return str(self.fields.get("group", self.key))

    @property
    def cluster(self) -> str:
        """Name of what depends on each other: the presentation of an NLVR example, else the group."""
        return str(self.fields.get("presentation", self.group))

    def text(self, kind: TextKind, number: int) -> tuple[str, int, Mapping[str, Any]]:
        """One text, its label, and what else the data says of it.

        The label is 1 for true (captions are) and 0 for false, of a relation its class, -1 where nothing is claimed.
        """
        if isinstance(kind, EveryImage):
            named = {} if self.number is None else {"number": self.number}
            return json.dumps([] if kind.label is None else values_at(self.fields, kind.label.split("."))), -1, named
        if kind == "captions":
            return str(self.captions[number]), 1, {}
        if kind in ASKED:
            question = self.fields["questions"][number]
            if wrong := _wrong_with(question):
                raise BadSample(f"has among its questions one {wrong}")
            if kind == "answers" and not question.get("answers"):
                raise BadSample("has a question without `answers` of annotators")
            return question["question"], -1, question
        statement = self.fields["statements"][number]
        return str(statement["text"]), _label(kind, statement), statement


def questions_in(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The questions of a sample that are as they should be; `Sample.text` refuses the others one by one."""
    asked = fields.get("questions")
    return [one for one in asked if not _wrong_with(one)] if isinstance(asked, list) else []


def _wrong_with(question: object) -> str:
    """What stands against asking it; nothing where it is an object with a text, and answers that are texts."""
    if not isinstance(question, dict) or not isinstance(question.get("question"), str):
        return "without a text `question`"
    answers = question.get("answers")
    if answers is not None and not (isinstance(answers, list) and all(isinstance(one, str) for one in answers)):
        return "whose `answers` are no list of texts"
    if not isinstance(question.get("question_id"), int | str | None):
        return "whose `question_id` is neither a whole number nor a text"
    return ""


def all_said(kind: TextKind, text: str, told: Mapping[str, Any]) -> str:
    """All that is claimed of a picture together with a text, so that what mirrors it can keep it true.

    Args:
        kind: of the text.
        text: a caption, statement or question; with a question go its answers, which are what is learned.
        told: what else the data says of the text.
    """
    if kind not in ASKED:
        return text
    return "\n".join(map(str, [text, told.get("answer"), *(told.get("answers") or [])]))


def _label(kind: TextKind, statement: Mapping[str, Any]) -> int:
    if kind in ("statements", "pairs"):
        return int(bool(statement["label"]))
    if statement.get("relation") not in LABELS:
        raise BadSample(f"has a statement whose relation is none of {', '.join(LABELS)}")
    return LABELS.index(statement["relation"])


def values_at(value: Any, path: Sequence[str]) -> list[Any]:
    """The texts and numbers that a path leads to (see `EveryImage`); none where it leads nowhere."""
    if not path:
        found = value if isinstance(value, list) else [value]
        return [each for each in found if isinstance(each, str | int) and not isinstance(each, bool)]
    step, rest = path[0], path[1:]
    if isinstance(value, list):
        chosen = value if step == "*" else value[int(step) :][:1] if step.isdecimal() else []
        return [found for each in chosen for found in values_at(each, rest)]
    return values_at(value[step], rest) if isinstance(value, dict) and step in value else []
