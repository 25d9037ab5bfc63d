"""VQA v2: questions about COCO's pictures with ten human answers each.

Format: https://visualqa.org/download.html (Goyal et al., CVPR 2017): `v2_OpenEnded_mscoco_train2014_questions.json`,
{"questions": [{"image_id", "question", "question_id"}]}, and `v2_mscoco_train2014_annotations.json`, {"annotations":
[{"question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers": [{"answer",
"answer_confidence", "answer_id"}]}]}; so for val2014; test2015 and test-dev2015 have questions only.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, objects, one_line
from data_prep.errors import UserError
from data_prep.grouping import Groups
from data_prep.json_stream import stream_json
from data_prep.sources import published
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

_NAME = re.compile(r"v2_(?:OpenEnded_)?mscoco_(train|val|test-dev|test)(20\d\d)_(?:questions|annotations)\.json")


def _split_of(file: Annotation) -> tuple[str, str]:
    """(split, the year and part in COCO's file names; "" where the name does not say it)."""
    match = _NAME.fullmatch(file.path.name)
    if file.split is None and match is None:
        raise UserError(f"{file.path}: not a published name, so say which split it is: --annotations val={file.path}")
    part = f"{'test' if match[1] == 'test-dev' else match[1]}{match[2]}" if match else ""
    return file.split or (match[1] if match else ""), part


def _splits(request: Request) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_split_of(file)[0] for file in request.files))


def _read(request: Request) -> Iterator[Entry]:
    for split in _splits(request):
        files = [file for file in request.files if _split_of(file)[0] == split]
        yield from _read_split(split, files, Path(request.config.cache or "."))


def _read_split(split: str, files: Sequence[Annotation], scratch: Path) -> Iterator[Entry]:
    """Puts the questions and the answers of each picture together."""
    part = next((part for _, part in map(_split_of, files) if part), "")
    with Groups(scratch) as groups:
        for file in files:
            for key, item in stream_json(file.path):
                if key not in ("questions", "annotations"):
                    continue
                if isinstance(item, dict) and isinstance(item.get("image_id"), int) and "question_id" in item:
                    groups.add(item["image_id"], [key, item])
                else:
                    yield Entry(split=split, id=f"malformed {item!r:.40}", skip="malformed record")
        for values in groups:
            asked = [item for key, item in values if key == "questions"]
            answers = {str(item["question_id"]): item for key, item in values if key == "annotations"}
            yield _entry(split, part, values[0][1]["image_id"], asked, answers)


def _entry(split: str, part: str, number: int, asked: list[dict[str, Any]], answers: dict[str, Any]) -> Entry:
    parts = [part] if part else ["train2014", "val2014", "test2015"]
    names = [f"COCO_{name}_{number:012d}.jpg" for name in parts]
    questions = [_question(one, answers.get(str(one["question_id"]))) for one in asked if one_line(one.get("question"))]
    return Entry(
        split=split,
        id=str(number),
        key=f"{number:012d}",
        pictures={"": [*names, f"{number:012d}.jpg"]},
        questions=questions,
        skip=None if questions else "answers without a question" if answers else "no question",
        fields={"coco_id": number},
    )


def _question(asked: dict[str, Any], told: dict[str, Any] | None) -> dict[str, Any]:
    """A question; with the answer that most people gave and all ten, where there are answers."""
    question: dict[str, Any] = {"question": one_line(asked["question"]), "question_id": asked["question_id"]}
    if told is None:
        return question
    given = objects(told.get("answers"))
    return question | {
        "answer": one_line(told.get("multiple_choice_answer")),
        "answers": [one_line(one.get("answer")) for one in given],
        "confidences": [one.get("answer_confidence") for one in given],
        "question_type": told.get("question_type"),
        "answer_type": told.get("answer_type"),
    }


_WHERE = "https://visualqa.org/download.html"
DATA = DataSet(
    name="vqa",
    title="VQA v2: questions about COCO's pictures with ten answers each; a sample is a picture with all its questions",
    layouts=(
        Layout(
            name="version 2",
            files=(
                Expected(names=("v2_OpenEnded_mscoco_*_questions.json",), what=f"Questions of {_WHERE}"),
                Expected(names=("v2_mscoco_*_annotations.json",), what=f"Annotations of {_WHERE}", optional=True),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=tuple(
                f"{name}{end}"
                for name in ("train2014", "val2014", "test2015", "train2017", "val2017", "test2017")
                for end in ("", ".zip", ".tar")
            ),
            what="COCO's train2014, val2014, test2015 (those of 2017 do as well) as folders, .zip or .tar",
        ),
    ),
    splits=("train", "val", "test", "test-dev"),
    splits_of=_splits,
    read=_read,
    notes="Each question has question_id, answer (the most frequent), answers (all ten), question_type, answer_type; "
    "questions without annotations, as those of test, have neither.",
)
plan = functools.partial(published.plan, DATA)
