"""NLVR2: human statements about pairs of photographs, true or false.

Format: https://github.com/lil-lab/nlvr/tree/master/nlvr2 (Suhr et al., ACL 2019): `train.json`, `dev.json`,
`test1.json`, `test2.json`, an object a line with identifier (split-set-pair-sentence), sentence, label ("True" or
"False") and the two URLs; the pictures are `<split>-<set>-<pair>-img0.png` (left) and `-img1.png` (right), whatever
format they have.
Consistency is measured over the pairs of one sentence: identifiers that differ in the pair alone are a group, as in
the corpus's eval/metrics.py. Its README asks for validation sets made of whole sets: `presentation` is the set.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.entries import Entry, one_line
from data_prep.errors import UserError
from data_prep.json_stream import json_lines
from data_prep.sources import published
from data_prep.sources.chance import shuffled
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

IDENTIFIER = re.compile(r"[^\s/-]+(?:-[^\s/-]+){3}")
"""Of a sentence with a pair, such as dev-850-0-1."""
_SPLITS = ("train", "dev", "test1", "test2")
_FILES = tuple(f"{split}.json" for split in _SPLITS)


def _split_of(file: Annotation) -> str:
    stem = file.path.stem
    if file.split is None and stem not in _SPLITS:
        raise UserError(f"{file.path}: not a published name, so say which split it is: --annotations dev={file.path}")
    return file.split or stem


def _read(request: Request) -> Iterator[Entry]:
    for file in request.files:
        split = _split_of(file)
        kept = _sentences(request, split)
        for number, value in json_lines(file.path):
            value = value or {}
            if kept is not None and _sentence_in(value) not in kept:
                continue
            name, sentence = str(value.get("identifier", "")), one_line(value.get("sentence"))
            label = {"true": True, "false": False}.get(str(value.get("label")).lower())
            if name.count("-") < 3 or not sentence or label is None:
                yield Entry(split=split, id=f"line {number}", skip="malformed record")
            else:
                yield _entry(split, name, sentence, label)


def _sentences(request: Request, split: str) -> set[str] | None:
    """Sentences whose pairs are at most as many as the split is to have, one sentence at least; None for all.

    Pairs of one stay together: consistency of a few of them would be another, higher figure.
    """
    limit = request.config.sizes.get(split)
    if limit is None:
        return None
    files = [file for file in request.files if _split_of(file) == split]
    pairs = Counter(filter(None, (_sentence_in(value or {}) for file in files for _, value in json_lines(file.path))))
    kept, left = set[str](), limit
    for name in shuffled(sorted(pairs), f"nlvr2/{split}/{request.config.seed}"):
        if pairs[name] <= left or not kept:
            kept.add(name)
            left -= pairs[name]
    return kept


def _sentence_in(value: Mapping[str, Any]) -> str | None:
    """The sentence of a line; None where it has no identifier."""
    name = str(value.get("identifier", ""))
    return sentence_of(name) if name.count("-") >= 3 else None


def _entry(split: str, name: str, sentence: str, label: bool) -> Entry:
    stem = name.rpartition("-")[0]
    return Entry(
        split=split,
        id=name,
        pictures={"left": [f"{stem}-img0.png"], "right": [f"{stem}-img1.png"]},
        captions=[sentence] if label else [],
        statements=[{"text": sentence, "label": label}],
        group=sentence_of(name),
        fields={"presentation": stem.rpartition("-")[0]},
    )


def sentence_of(name: str) -> str:
    """What the pairs of one sentence have in common: their identifiers without the pair.

    Args:
        name: An identifier.
    """
    part, number, _, told = name.rsplit("-", 3)
    return f"{part}-{number}-{told}"


_WHERE = "https://github.com/lil-lab/nlvr/tree/master/nlvr2"
DATA = DataSet(
    name="nlvr2",
    title="NLVR2: statements about pairs of photographs, true or false",
    layouts=(
        Layout(
            name="json lines",
            files=(Expected(names=_FILES, what=f"the folder data of {_WHERE}"),),
        ),
    ),
    pictures=(
        Expected(
            names=tuple(
                f"{name}{end}"
                for name in ("images", "train_img", "dev", "test1", "test2", "nlvr2_images")
                for end in ("", ".zip", ".tar")
            ),
            what="the pictures that the authors give on request: images/train, dev, test1, test2",
        ),
    ),
    splits=_SPLITS,
    splits_of=lambda request: tuple(dict.fromkeys(_split_of(file) for file in request.files)),
    read=_read,
    cuts=True,
    notes="--sizes.dev keeps the pairs of one sentence together, so that there may be fewer, or those of one sentence.",
)
plan = functools.partial(published.plan, DATA)
