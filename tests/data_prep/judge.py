"""Judges sentences about drawn scenes from their words alone, knowing nothing of how they were made.

It parses the English and looks at the list of shapes; overlap is decided by filling the shapes at eight times
the size and looking for a common pixel.
"""

import itertools
import re

import cv2
import numpy as np

from data_prep.shapes_draw import _outline

COLOUR = "red|orange|yellow|green|cyan|blue|purple|pink"
KIND = "circle|square|triangle|star|cross|heart|shape"
NUMBERS = dict(
    zip(["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(11), strict=True)
)
THING = rf"(?:an? )?(?:(?:small|large) )?(?:(?:{COLOUR}) )?(?:{KIND})(?:e?s)?\b"
WHERE = r"(?:in|on|at) the (?:top left|top right|bottom left|bottom right|left|right|top|bottom)(?: half)?"
RELATION = "left of|right of|above|below"
RADIUS = {"small": 4.5, "large": 10.0}
_SCALE = 8


def fitting(words: str, scene: list[dict]) -> list[dict]:
    """The shapes that a description fits."""
    size = re.search(r"\b(small|large)\b", words)
    colour = re.search(rf"\b({COLOUR})\b", words)
    kind = re.search(rf"\b({KIND})(e?s)?\b", words)
    assert kind, words
    return [
        shape
        for shape in scene
        if (not size or shape["size"] == size[1])
        and (not colour or shape["colour"] == colour[1])
        and (kind[1] == "shape" or shape["kind"] == kind[1])
    ]


def is_there(shape: dict, words: str) -> bool:
    """Whether a shape's centre is in the named part of the picture."""
    x, y = shape["x"], shape["y"]
    tests = {"left": x < 32, "right": x > 32, "top": y < 32, "bottom": y > 32}
    return all(tests[word] for word in re.findall("left|right|top|bottom", words))


def is_so(one: dict, other: dict, relation: str) -> bool:
    """Whether one shape's centre lies so of the other's."""
    return {
        "left of": one["x"] < other["x"],
        "right of": one["x"] > other["x"],
        "above": one["y"] < other["y"],
        "below": one["y"] > other["y"],
    }[relation]


def mask(shape: dict, turn: float = 0.0) -> np.ndarray:
    """Where a shape is, at eight times the size."""
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = _outline(shape["kind"]) @ rotation * RADIUS[shape["size"]] + [shape["x"], shape["y"]]
    canvas = np.zeros((64 * _SCALE, 64 * _SCALE), np.uint8)
    cv2.fillPoly(canvas, [np.rint(points * _SCALE).astype(np.int32)], 1)
    return canvas


def overlapping(one: dict, other: dict) -> bool:
    """Whether two shapes have a common pixel, however they are turned (which must not matter)."""
    turns = (-0.2, 0.0, 0.2)
    found = {bool((mask(one, a) & mask(other, b)).any()) for a, b in itertools.product(turns, turns)}
    assert len(found) == 1, (one, other)
    return found.pop()


def _pairs(first: str, second: str, scene: list[dict]):
    return [(one, other) for one in fitting(first, scene) for other in fitting(second, scene) if one is not other]


def judge(text: str, scene: list[dict]) -> bool:
    """Whether a statement is true of a scene."""
    counted = re.fullmatch(rf"(?:there is|there are|the picture has) exactly (\w+) ({THING})", text)
    if counted:
        return len(fitting(counted[2], scene)) == NUMBERS[counted[1]]
    related = re.fullmatch(rf"(?:there is )?({THING}) (?:is )?({RELATION}) ({THING})", text)
    if related:
        return any(is_so(a, b, related[2]) for a, b in _pairs(related[1], related[3], scene))
    over = re.fullmatch(rf"({THING}) overlaps ({THING})", text) or re.fullmatch(
        rf"({THING}) and ({THING}) overlap", text
    )
    if over:
        return any(overlapping(a, b) for a, b in _pairs(over[1], over[2], scene))
    placed = re.fullmatch(rf"(?:there is )?({THING}) (?:is )?({WHERE})", text)
    if placed:
        return any(is_there(shape, placed[2]) for shape in fitting(placed[1], scene))
    exists = re.fullmatch(rf"(?:there is|the picture shows|one of the shapes is) ({THING})", text) or re.fullmatch(
        rf"({THING}) is in the picture", text
    )
    assert exists, f"cannot read {text!r}"
    return bool(fitting(exists[1], scene))


def judge_pair(text: str, left: list[dict], right: list[dict]) -> bool:
    """Whether a statement is true of a pair of scenes."""
    sides = {"left": left, "right": right}
    both = re.fullmatch(rf"(?:both pictures have|there is) ({THING})(?: in each picture)?", text)
    if both:
        return bool(fitting(both[1], left)) and bool(fitting(both[1], right))
    only = re.fullmatch(rf"only the (left|right) picture has ({THING})", text)
    turned = re.fullmatch(rf"({THING}) is in the (left|right) picture only", text)
    if only or turned:
        side, words = (only[1], only[2]) if only else (turned[2], turned[1])
        counts = {name: len(fitting(words, scene)) for name, scene in sides.items()}
        return counts.pop(side) > 0 and not sum(counts.values())
    more = re.fullmatch(rf"the (left|right) picture has more ({THING}) than the (left|right) one", text)
    if more:
        return len(fitting(more[2], sides[more[1]])) > len(fitting(more[2], sides[more[3]]))
    same = re.fullmatch(rf"both pictures have the same number of ({THING})", text)
    if same:
        return len(fitting(same[1], left)) == len(fitting(same[1], right))
    total = re.fullmatch(rf"there (?:is|are) exactly (\w+) ({THING}) in the two pictures", text)
    assert total, f"cannot read {text!r}"
    return len(fitting(total[2], left)) + len(fitting(total[2], right)) == NUMBERS[total[1]]


def answer(question: str, scene: list[dict]) -> str:
    """The answer to a question about a scene."""
    many = re.fullmatch(rf"how many ({THING}) are there\?", question)
    if many:
        return list(NUMBERS)[len(fitting(many[1], scene))]
    colour = re.fullmatch(rf"what colour is the ({THING})\?", question)
    if colour:
        (shape,) = fitting(colour[1], scene)
        return shape["colour"]
    where = re.fullmatch(rf"where is the ({THING})\?", question)
    if where:
        (shape,) = fitting(where[1], scene)
        return f"{'top' if shape['y'] < 32 else 'bottom'} {'left' if shape['x'] < 32 else 'right'}"
    there = re.fullmatch(rf"is there ({THING})\?", question)
    assert there, f"cannot read {question!r}"
    return "yes" if fitting(there[1], scene) else "no"


def caption_faults(caption: str, scene: list[dict]) -> list[str]:
    """What a caption says that is not so: shapes, places, relations, numbers."""
    faults = []
    for words, where in re.findall(rf"(\ban? (?:\w+ )*?(?:{KIND})\b)(?: ({WHERE}))?", caption):
        if not any(is_there(shape, where) for shape in fitting(words, scene)):
            faults.append(f"{words} {where}")
    for first, relation, second in re.findall(rf"({THING}) (?:is )?({RELATION}) ({THING})", caption):
        if not any(is_so(a, b, relation) for a, b in _pairs(first, second, scene)):
            faults.append(f"{first} {relation} {second}")
    for first, second in re.findall(rf"({THING}) (?:overlapping|overlaps) ({THING})", caption):
        if not any(overlapping(a, b) for a, b in _pairs(first, second, scene)):
            faults.append(f"{first} overlaps {second}")
    for number, words in re.findall(
        rf"\b({'|'.join(NUMBERS)}) ((?:small |large )?(?:(?:{COLOUR}) )?(?:{KIND})(?:e?s)?)\b", caption
    ):
        if len(fitting(words, scene)) != NUMBERS[number]:
            faults.append(f"{number} {words}")
    return faults


def mentions(caption: str) -> list[str]:
    """The shapes that a caption mentions, by description."""
    return re.findall(rf"\ban? (?:\w+ )*?(?:{KIND})\b", caption)
