"""SNLI-VE: does a photograph of Flickr30K entail a sentence, contradict it, or neither?

Format: https://github.com/necla-ml/SNLI-VE (Xie et al., 2019): `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`,
`snli_ve_test.jsonl`, an object a line with Flickr30K_ID (Flikr30kID in older files), gold_label (entailment, neutral,
contradiction), sentence1 (the caption that the sentence was written for), sentence2 (the sentence), pairID, captionID.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, one_line
from data_prep.errors import UserError
from data_prep.grouping import Groups
from data_prep.json_stream import json_lines
from data_prep.sources import published
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

LABELS = ("entailment", "neutral", "contradiction")
_SPLITS = ("train", "dev", "test")
# The files came out under the second name first.
_IDS = ("Flickr30K_ID", "Flikr30kID")


def _split_of(file: Annotation) -> str:
    named = next((split for split in _SPLITS if split in file.path.stem.split("_")), None)
    if file.split is None and named is None:
        raise UserError(f"{file.path}: not a published name, so say which split it is: --annotations dev={file.path}")
    return file.split or named or ""


def _read(request: Request) -> Iterator[Entry]:
    for file in request.files:
        split = _split_of(file)
        with Groups(Path(request.config.cache or ".")) as groups:
            for number, value in json_lines(file.path):
                value = value or {}
                name = _picture(value)
                if name and value.get("gold_label") in LABELS and one_line(value.get("sentence2")):
                    groups.add(name, [name, value])
                else:
                    yield Entry(split=split, id=f"line {number}", skip=_fault(value))
            for values in groups:
                yield _entry(split, values[0][0], [value for _, value in values])


def _picture(value: dict[str, Any]) -> str:
    """The picture's number at Flickr."""
    return next((str(value[field]) for field in _IDS if value.get(field)), "").removesuffix(".jpg")


def _fault(value: dict[str, Any]) -> str:
    return "no gold label" if value.get("gold_label") == "-" else "malformed record"


def _entry(split: str, name: str, lines: list[dict[str, Any]]) -> Entry:
    """A picture with all of its sentences; `relation` is which of the three labels they have."""
    statements = [
        {
            "text": one_line(line["sentence2"]),
            "label": line["gold_label"] == "entailment",
            "relation": line["gold_label"],
            "pair_id": line.get("pairID"),
        }
        for line in lines
    ]
    premises = dict.fromkeys(text for line in lines if (text := one_line(line.get("sentence1"))))
    return Entry(
        split=split,
        id=name,
        pictures={"": [f"{name}.jpg"]},
        captions=list(premises),
        statements=statements,
        fields={"flickr_id": name},
    )


DATA = DataSet(
    name="snli_ve",
    title="SNLI-VE: sentences that a photograph of Flickr30K entails, contradicts, or neither",
    layouts=(
        Layout(
            name="json lines",
            files=(
                Expected(
                    names=("snli_ve_train.jsonl", "snli_ve_dev.jsonl", "snli_ve_test.jsonl"),
                    what="https://github.com/necla-ml/SNLI-VE",
                ),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=tuple(
                f"{name}{end}" for name in ("flickr30k-images", "flickr30k_images") for end in ("", ".zip", ".tar")
            ),
            what="the pictures of Flickr30K: flickr30k-images as a folder, .tar or .zip",
        ),
    ),
    splits=_SPLITS,
    splits_of=lambda request: tuple(dict.fromkeys(_split_of(file) for file in request.files)),
    read=_read,
    notes="A statement's `relation` is the label of three classes, `label` whether it is entailment; captions are the "
    "captions of Flickr30K that the sentences were written for.",
)
plan = functools.partial(published.plan, DATA)
