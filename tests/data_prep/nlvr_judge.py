"""Reads the sentences of drawn NLVR scenes anew and judges them; shares no code with what wrote them."""

import itertools
import re
from collections.abc import Callable

import numpy as np

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: number for number, word in enumerate(_WORDS)} | {"a": 1, "an": 1}
SIZES = {"small": 10, "medium": 20, "big": 30}
BOXES = re.compile(
    r"(?:there (?:is|are) )?(?P<many>.+?) (?:of the )?(?:grey )?(?P<noun>box|boxes|tower|towers) "
    r"(?:with|which has|which have|that has|that have|has|have) (?P<trait>.+)"
)
AMOUNT = r"(?P<mode>at least |at most |exactly |only )?(?P<number>\w+)"
_NOUN = r"(?P<noun>item|object|block|circle|triangle|square)s?"
LOOK = rf"(?:(?P<size>small|medium|big) )?(?:(?P<colour>yellow|black|blue) )?{_NOUN}"
WHERE = r"(?P<where>(?:not |closely )?touching .+)"


def _described(one_box: bool, listed: str, boxes: list[list[dict]]) -> bool:
    """Whether a list is of all items, or of numbers of what one box holds, or all three do by colour or shape."""
    if named := re.findall(r"a (small|medium|big) (\w+) (\w+)", listed):
        items = [(item["size"], item["colour"], item["shape"]) for item in itertools.chain(*boxes)]
        return sorted((SIZES[size], colour, shape) for size, colour, shape in named) == sorted(items)
    told = {name: int(number) for number, name in re.findall(r"(\d+) (\D+?)s?(?= and| \d|$)", listed)}
    assert " ".join(re.findall(r"\d+", listed)).split() == [str(n) for n in told.values()], listed
    if one_box:
        return any(told == _count(box, lambda item: f"{item['colour']} {item['shape']}") for box in boxes)
    items = list(itertools.chain(*boxes))
    by_colour, by_shape = (
        _count(items, lambda item: f"{item['colour']} item"),
        _count(items, lambda item: item["shape"]),
    )
    return {name: number for name, number in told.items() if number} in (by_colour, by_shape)


def _count(items: list[dict], name: Callable[[dict], str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[name(item)] = counts.get(name(item), 0) + 1
    return counts


def judge(text: str, boxes: list[list[dict]]) -> bool:
    """Whether a sentence is true of three boxes of items, of which towers begin at their base."""
    text = text.lower().rstrip(".")
    items = list(itertools.chain(*boxes))
    if found := re.fullmatch(r"the towers from (base|top) to (?:base|top) are (.+)", text):
        told = [tower.split()[:: 1 if found[1] == "base" else -1] for tower in found[2].split(" and ")]
        return sorted(told) == sorted([item["colour"] for item in box] for box in boxes)
    if found := re.fullmatch(r"(a box has|in all there are) (.+)", text):
        return _described(found[1].startswith("a box"), found[2], boxes)
    if found := re.fullmatch(r"the (base|top) of the tower with (\w+) blocks? is (\w+)", text):
        return _known(boxes, found[2], found[3], found[1])
    if found := re.fullmatch(r"the tower with (\w+) blocks? has a (\w+) block at the (base|top)", text):
        return _known(boxes, found[1], found[2], found[3])
    if re.search("same height|same number of blocks|different in height|a different number of blocks", text):
        heights = len({len(box) for box in boxes})
        return heights == (2 if "two towers" in text else 3 if "different" in text else 1)
    if found := re.fullmatch(
        rf"there (?:is|are) {AMOUNT} (?P<colour>\w+) blocks? as the (?P<end>\w+) of a tower", text
    ):
        ends = [box[0 if found["end"] == "base" else -1]["colour"] for box in boxes]
        return _enough(found, ends.count(found["colour"]))
    if found := re.fullmatch(rf"none of the {LOOK} are {WHERE}", text):
        return not any(_fits(item, found) and _at(item, found["where"]) for item in items)
    if found := re.fullmatch(rf"all (?:the )?{LOOK} are {WHERE}", text):
        return all(_at(item, found["where"]) for item in items if _fits(item, found))
    if found := re.fullmatch(rf"there (?:is|are) {AMOUNT} {LOOK}(?: in total)?(?: {WHERE})?", text):
        return _enough(found, sum(_fits(i, found) and _at(i, found["where"]) for i in items))
    found = BOXES.fullmatch(text)
    assert found, text
    count = sum(_has(found["trait"], box) for box in boxes)
    if found["many"] in ("each", "every", "all the", "all three"):
        return count == 3
    if found["many"] == "none":
        return count == 0
    return _enough(re.fullmatch(AMOUNT, found["many"]), count, strict=found["many"] != "a")


def _number(word: str) -> int:
    return int(word) if word.isdigit() else NUMBERS[word]


def _enough(found: re.Match | None, count: int, strict: bool = True) -> bool:
    assert found
    number, mode = _number(found["number"]), (found["mode"] or "").strip()
    if mode == "at least" or found["number"] in ("a", "an") or not strict:
        return count >= number
    return count <= number if mode == "at most" else count == number


def _fits(item: dict, found: re.Match) -> bool:
    return (
        (found["size"] is None or SIZES[found["size"]] == item["size"])
        and found["colour"] in (None, item["colour"])
        and found["noun"] in ("item", "object", "block", item["shape"])
    )


def _at(item: dict, where: str | None) -> bool:
    if where is None:
        return True
    end = 100 - item["size"]
    across, down = item["x"] in (0, end), item["y"] in (0, end)
    if where.startswith("not"):
        return not (across or down)
    tests: dict[str, Callable[[], bool]] = {
        "corner": lambda: across and down,
        "base|bottom": lambda: item["y"] == end,
        "roof|the top": lambda: item["y"] == 0,
        "right": lambda: item["x"] == end,
        "edge|wall|side": lambda: across or down,
    }
    return next(test for words, test in tests.items() if re.search(words, where))()


def _known(boxes: list[list[dict]], height: str, colour: str, end: str) -> bool:
    (tower,) = [box for box in boxes if len(box) == _number(height)]
    return tower[0 if end == "base" else -1]["colour"] == colour


def _has(trait: str, box: list[dict]) -> bool:
    colours = [item["colour"] for item in box]
    for pattern, test in _TRAITS.items():
        if found := re.fullmatch(pattern, trait):
            return test(found, box, colours)
    raise AssertionError(trait)


def _parts(words: str) -> list[re.Match]:
    parts = [re.fullmatch(rf"{AMOUNT} {LOOK}", part) for part in re.split(r", | and ", words)]
    assert all(parts), words
    return [part for part in parts if part]


def _listed(found: re.Match, box: list[dict], colours: list[str]) -> bool:
    return all(_enough(part, sum(_fits(item, part) for item in box)) for part in _parts(found[0]))


def _inventory(found: re.Match, box: list[dict], colours: list[str]) -> bool:
    parts = _parts(found[1])
    wanted = sum(_number(part["number"]) for part in parts)
    return len(box) == wanted and all(
        sum(_fits(item, part) for item in box) == _number(part["number"]) for part in parts
    )


def _both(found: re.Match, box: list[dict], test: Callable[[dict, dict], bool]) -> bool:
    one, other = (re.fullmatch(LOOK, found[name]) for name in ("one", "other"))
    assert one and other
    return any(_fits(i, one) and _fits(j, other) and test(i, j) for i, j in itertools.permutations(box, 2))


def near(one: dict, other: dict) -> bool:
    """Whether the pixels of two items come close to each other."""
    ends = [np.argwhere(_pixels(item)) for item in (one, other)]
    return bool(np.sqrt(((ends[0][:, None] - ends[1][None]) ** 2).sum(axis=2)).min() < 4.3)


def _pixels(item: dict) -> np.ndarray:
    y, x = np.mgrid[:100, :100] + 0.5
    x, y, size = x - item["x"] - item["size"] / 2, y - item["y"], item["size"]
    square = (abs(x) < size / 2) & (y > 0) & (y < size)
    round_, sharp = x**2 + (y - size / 2) ** 2 < size**2 / 4, abs(x) < y / 2
    return square & {"square": square, "circle": round_, "triangle": sharp}[item["shape"]]


def _on(found: re.Match, box: list[dict], colours: list[str]) -> bool:
    first, second = found["first"], found["second"]
    low, high = (first, second) if found["how"] in ("below", "bellow") else (second, first)
    return (low, high) in itertools.pairwise(colours)


def _level(found: re.Match, box: list[dict], colours: list[str]) -> bool:
    where = found["where"]
    if (where == "middle" and len(box) != 3) or (where == "second" and len(box) < 2):
        return False
    return colours[{"base": 0, "top": -1, "second": 1, "middle": 1}[where]] == found["colour"]


_NAMES = {"1": 1, "one": 1, "same": 1, "2": 2, "two": 2, "3": 3, "three": 3}
_C, _N = "(?:yellow|black|blue)", "(?:items|blocks)"
_TRAITS: dict[str, Callable[[re.Match, list[dict], list[str]], bool]] = {
    rf"only ({_C}(?: and {_C})?) {_N}": lambda m, b, c: set(c) == set(m[1].split(" and ")),
    rf"{_N} of only ({_C}(?: and {_C})?) color": lambda m, b, c: set(c) == set(m[1].split(" and ")),
    rf"{_N} of (?:only |exactly |all |the )*(?P<n>\w+?)(?: different)? colors?":
        lambda m, b, c: len(set(c)) == _NAMES[m["n"]],
    rf"(\w+) {_N} of which (?:exactly )?(\w+) (?:is|are) (\w+)":
        lambda m, b, c: len(b) == _number(m[1]) and c.count(m[3]) == _number(m[2]),
    r"a base and a top of the same color|the same color at the base and the top": lambda m, b, c: c[0] == c[-1],
    r"(\w+|at least 2) (\w+) blocks stacked together":
        lambda m, b, c: (m[2], m[2]) in itertools.pairwise(c) and (m[1] == "at least 2" or c.count(m[2]) == 2),
    r"exactly \w+ blocks, a (\w+) block at the top, a (\w+) block in the middle and a (\w+) base":
        lambda m, b, c: c == [m[3], m[2], m[1]],
    r"exactly \w+ blocks, a (\w+) block at the top and a (\w+) base": lambda m, b, c: c == [m[2], m[1]],
    rf"{AMOUNT} blocks? (?:and a|where the) (?:(?P<c1>\w+) block at the )?(?P<end>base|top)(?: is (?P<c2>\w+))?":
        lambda m, b, c: _enough(m, len(b)) and c[0 if m["end"] == "base" else -1] == (m["c1"] or m["c2"]),
    r"a (\w+) block at the top and a (\w+) block at the base": lambda m, b, c: (c[-1], c[0]) == (m[1], m[2]),
    r"a (\w+) block at the base and a (\w+) block at the top": lambda m, b, c: (c[0], c[-1]) == (m[1], m[2]),
    r"a (?P<first>\w+) block (?P<how>below|bellow|above|over|on|on top of) a (?P<second>\w+) block": _on,
    r"a (?P<colour>\w+) block (?:at|as|in) the (?P<where>base|top|second|middle)(?: block)?(?: from the base)?": _level,
    r"an? (?P<one>[a-z ]+?) and an? (?P<other>[a-z ]+) of the same size":
        lambda m, b, c: _both(m, b, lambda i, j: i["size"] == j["size"]),
    r"an? (?P<one>[a-z ]+?) (?:closely )?touching an? (?P<other>[a-z ]*?(?:item|object|circle|triangle|square))":
        lambda m, b, c: _both(m, b, near),
    rf"an? {LOOK} on top": lambda m, b, c: len(b) > 1 and _fits(min(b, key=lambda item: item["y"]), m),
    rf"{AMOUNT} {LOOK} {WHERE}":
        lambda m, b, c: _enough(m, sum(_fits(i, m) and _at(i, m["where"]) for i in b)),
    r"only ((?:a|\w+) .+ (?:and|,) .+)": _inventory,
    rf"{AMOUNT} {LOOK}(?:(?:, | and ).+)*": _listed,
}  # fmt: skip
