"""Lists of samples as ALBEF, BLIP and LAVIS read them: a json array of objects, each with a path and a text.

Format: the json files of https://github.com/salesforce/ALBEF (Li et al., NeurIPS 2021): {"image", "caption"} with a
caption or a list of them; {"image", "img_id"} (BLIP's NoCaps, to be captioned); {"image", "question", "answer",
"question_id"} (VQA); {"image", "sentence", "label"} (SNLI-VE); {"images": [left, right], "sentence", "label"} (NLVR2).
Lines of one picture become one sample.
NLVR2's published lists leave out the corpus's identifiers; of these the pictures' names tell the set and the pair, but
not the sentence. Where a list has an "identifier" it is taken.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, one_line, sentences
from data_prep.grouping import Groups
from data_prep.json_stream import stream_json
from data_prep.sources import nlvr2, published
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

_SPLITS = ("train", "val", "dev", "test")
_COCO = re.compile(r"(?:^|/)COCO_[a-z]+20\d\d_(\d{12})\.jpg$", re.ASCII)
_PAIRED = re.compile(r"(?:^|.*/)([^/-]+-[^/-]+)-([^/-]+)-img[01]\.[a-z]+$")
_TEXTS = {"caption", "question", "sentence"}
_TRUTH = {"true": True, "false": False, "entailment": True, "neutral": False, "contradiction": False}


def _split_of(file: Annotation) -> str:
    words = re.split(r"[^a-z0-9]+", file.path.stem.lower())
    return file.split or next((split for split in _SPLITS if split in words), "train")


def _read(request: Request) -> Iterator[Entry]:
    for split in _splits(request):
        with Groups(Path(request.config.cache or ".")) as groups:
            for which, file in enumerate(request.files):
                if _split_of(file) == split:
                    yield from _read_file(file.path, which, split, groups)
            for values in groups:
                yield _entry(split, values)


def _splits(request: Request) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_split_of(file) for file in request.files))


def _read_file(path: Path, which: int, split: str, groups: Groups) -> Iterator[Entry]:
    for number, (_, item) in enumerate(stream_json(path)):
        value = item if isinstance(item, dict) else {}
        picture, pair = _picture(value), value.get("images")
        if picture is not None:
            groups.add(picture, value)
        elif isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair):
            # Each pair by itself; no path holds a zero byte, and lists of one name may lie in several folders.
            groups.add(f"\0{which} {number}", value | {"number": number, "list": which})
        else:
            yield Entry(split=split, id=f"{path.name} {number}", skip="malformed record")


def _picture(value: dict[str, Any]) -> str | None:
    """Path of the only picture; None of a pair, and of a list's entry that is none of both."""
    picture = value.get("image")
    return picture if isinstance(picture, str) and picture else None


def _entry(split: str, values: list[dict[str, Any]]) -> Entry:
    first = values[0]
    captions = dict.fromkeys(line for value in values for line in sentences(value.get("caption")))
    statements = [one for value in values if (one := _statement(value))]
    questions = [one for value in values if (one := _question(value))]
    if (picture := _picture(first)) is not None:
        name, pictures, group = picture, {"": [picture]}, None
        key = name.rpartition("/")[2].rpartition(".")[0]
    else:
        left, right = first["images"]
        name, key, group = _names_of_pair(first)
        pictures = {"left": [left], "right": [right]}
    return Entry(
        split=split,
        id=name,
        key=key,
        group=group,
        pictures=pictures,
        captions=list(captions),
        statements=statements,
        questions=questions,
        skip=None if captions or statements or questions or _is_silent(first) else "no caption",
        fields=_ids(first),
    )


def _is_silent(value: dict[str, Any]) -> bool:
    """Whether an entry is a picture to be told of, with its number and no text at all, as BLIP lists NoCaps."""
    return _picture(value) is not None and type(value.get("img_id")) is int and not _TEXTS & value.keys()


def _names_of_pair(value: dict[str, Any]) -> tuple[str, str, str | None]:
    """Id, key and group of a pair: its identifier where the list has it, else its place in the list."""
    identifier = value.get("identifier")
    if isinstance(identifier, str) and nlvr2.IDENTIFIER.fullmatch(identifier):
        return identifier, identifier, nlvr2.sentence_of(identifier)
    left, right = value["images"]
    return f"{left} {right} {value['list']} {value['number']}", f"pair-{value['number']:08d}", None


def _ids(value: dict[str, Any]) -> dict[str, Any]:
    """What the lists call the picture, its number in COCO where its name is of there, and the set of NLVR2's pairs."""
    ids = {name: value[name] for name in ("image_id", "img_id") if isinstance(value.get(name), str | int)}
    found = _COCO.search(str(value.get("image")))
    # Sentences about pictures of one set depend on each other, as in NLVR2's own files. A picture's entry may have
    # anything for "images", which nobody has looked at.
    pair = value["images"] if _picture(value) is None else ()
    sets = {paired[1] for name in pair if (paired := _PAIRED.match(name))}
    ids |= {"presentation": sets.pop()} if len(sets) == 1 else {}
    return ids | ({"coco_id": int(found[1])} if found else {})


def _statement(value: dict[str, Any]) -> dict[str, Any] | None:
    text, label = one_line(value.get("sentence")), str(value.get("label")).lower()
    if not text or label not in _TRUTH:
        return None
    relation = {} if label in ("true", "false") else {"relation": label}
    return {"text": text, "label": _TRUTH[label]} | relation


def _question(value: dict[str, Any]) -> dict[str, Any] | None:
    """A question; its answer is the most frequent one of the list."""
    text, answers = one_line(value.get("question")), sentences(value.get("answer"))
    if not text:
        return None
    question: dict[str, Any] = {"question": text, "question_id": value.get("question_id")}
    return question | ({"answer": Counter(answers).most_common(1)[0][0], "answers": answers} if answers else {})


DATA = DataSet(
    name="albef",
    title="ALBEF-style json lists: image and caption (or question, or sentence and label)",
    layouts=(
        Layout(
            name="json lists",
            files=(Expected(names=("*.json",), what='your own, [{"image": "path", "caption": "text"}, ...]'),),
        ),
    ),
    pictures=(Expected(names=("images",), what="what the paths lead to: folders, tars or zips"),),
    splits_of=_splits,
    read=_read,
    match=None,
    notes="The split is what the file name says (train, val, dev, test), else train, or --annotations SPLIT=FILE. "
    "Paths of another machine: with --match path the folders that a path and the pictures share must agree, with "
    "--match name the file name decides.",
)
plan = functools.partial(published.plan, DATA)
