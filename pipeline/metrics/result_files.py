"""Predictions in the formats that evaluation servers take, held against a data set's own annotation files."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import write_atomic, write_json
from data_prep.json_stream import json_lines, stream_json

_SHOWN = 3
_ENDINGS = (".json", ".jsonl", ".csv")


def first_few(names: Iterable[str], count: int) -> str:
    """The first of many names, as an error tells them."""
    shown = [name for _, name in zip(range(_SHOWN), names, strict=False)]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def predictions_of(path: Path, name_key: str, value_key: str) -> dict[str, str]:
    """Predictions by id, from a JSON array of objects, an object a line (.jsonl), or two columns (.csv).

    Args:
        path: The file; its ending says which of the three it is.
        name_key: Field of the id.
        value_key: Field of what is predicted.

    Raises:
        UserError: No such file, another format, or an id that stands there twice.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'}, and its ending tells what it is: a JSON array in .json, an "
            "object a line in .jsonl, two columns in .csv; rename it"
        )
    found: dict[str, str] = {}
    twice: dict[str, None] = {}
    for name, value in _pairs(path, name_key, value_key):
        if name in found:
            twice[name] = None
        found[name] = value
    if twice:
        raise UserError(
            f"{path}: {len(twice)} of {name_key} stand there twice: {first_few(twice, len(twice))}; keep one of each"
        )
    if not found:
        raise UserError(f"{path} holds no predictions; wanted {name_key} and {value_key} of each")
    return found


def refuse_others(path: Path, predictions: Mapping[str, str], known: Collection[str]) -> None:
    """Refuses predictions that are none of a task's classes: counted as wrong they would look like a bad model.

    Args:
        path: Of the predictions, for errors.
        predictions: What was predicted.
        known: The classes, in lower case.

    Raises:
        UserError: A prediction is none of them, in any case.
    """
    _refuse_odd(path, predictions, known, "predictions")


def refuse_other_labels(path: Path, labels: Mapping[str, str], known: Collection[str]) -> None:
    """Refuses annotations that are none of a task's classes: no prediction would ever be right.

    Args:
        path: Of the annotations, for errors.
        labels: What is said to be right.
        known: The classes, in lower case.

    Raises:
        UserError: A label is none of them.
    """
    _refuse_odd(path, labels, known, "labels")


def _refuse_odd(path: Path, said: Mapping[str, str], known: Collection[str], what: str) -> None:
    odd = [name for name, each in said.items() if each.lower() not in known]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} {what} are none of {', '.join(known)}, the first is {said[odd[0]]!r} of "
            f"{odd[0]}; write the classes by name"
        )


def write_vqa(path: Path, found: Mapping[Any, str]) -> None:
    """Writes the VQA server's results.json.

    Args:
        path: The file.
        found: Answers by question_id.
    """
    write_json(path, [{"question_id": name, "answer": answer} for name, answer in found.items()])


def write_captions(path: Path, found: Mapping[str, str]) -> None:
    """Writes the caption server's results.json.

    Args:
        path: The file.
        found: Captions by image_id, which are numbers in it where they can be.
    """
    rows = [{"image_id": int(name) if name.isdecimal() else name, "caption": told} for name, told in found.items()]
    write_json(path, rows)


def write_nlvr2(path: Path, found: Mapping[str, str]) -> None:
    """Writes the corpus's CSV: identifier,True or False.

    Args:
        path: The file.
        found: ``true`` or ``false`` by identifier.
    """
    write_atomic(path, "".join(f"{name},{said.capitalize()}\n" for name, said in found.items()).encode())


def write_snli_ve(path: Path, found: Mapping[str, str]) -> None:
    """Writes an object a line: {"pairID", "prediction"}.

    Args:
        path: The file.
        found: Relations by pairID.
    """
    rows = (json.dumps({"pairID": name, "prediction": said}) for name, said in found.items())
    write_atomic(path, "".join(f"{row}\n" for row in rows))


def _pairs(path: Path, name_key: str, value_key: str) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() == ".csv":
        yield from _csv_pairs(path, name_key, value_key)
        return
    rows: Iterable[tuple[Any, Any]] = json_lines(path) if path.suffix.lower() == ".jsonl" else stream_json(path)
    for place, (_, row) in enumerate(rows):
        if not isinstance(row, dict) or not _is_id(row.get(name_key)) or not isinstance(row.get(value_key), str):
            raise UserError(
                f"{path}: entry {place} is not a prediction, which is an object with {name_key} (a number or a text) "
                f"and a text {value_key}"
            )
        yield str(row[name_key]), row[value_key]


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _csv_pairs(path: Path, name_key: str, value_key: str) -> Iterator[tuple[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel writes a mark
            for number, row in enumerate(csv.reader(file), 1):
                if row and len(row) != 2:
                    raise UserError(f"{path}: line {number} has {len(row)} columns, wanted {name_key},{value_key}")
                if row and not (number == 1 and row == [name_key, value_key]):  # names of the columns
                    yield row[0].strip(), row[1].strip()
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error


def answered(path: Path, predictions: Mapping[str, str], wanted: Collection[str], subset: bool) -> list[str]:
    """Ids to score, in the order of `wanted`.

    Args:
        path: Of the predictions, for errors.
        predictions: What was predicted.
        wanted: Ids of the annotations.
        subset: Score only those that are predicted, instead of refusing when some are not.

    Raises:
        UserError: A prediction for an id that the annotations do not have, or none for one that they have.
    """
    known = set(wanted)
    unknown = [name for name in predictions if name not in known]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} predictions for ids that the annotations do not have: "
            f"{first_few(unknown, len(unknown))}; are they of another split?"
        )
    missing = [name for name in wanted if name not in predictions]
    if missing and not subset:
        raise UserError(
            f"{path}: no prediction for {len(missing)} of {len(known)} ids: {first_few(missing, len(missing))}; "
            "predict them, or score the others alone with --subset"
        )
    return [name for name in wanted if name in predictions]


def annotated(
    path: Path, key: str, fields: str, read: Callable[[dict[str, Any]], None], name_key: str | None = None
) -> None:
    """Calls `read` with each object of the array `key` of an annotation file, or with each line of a .jsonl or .json.

    Args:
        path: The file.
        key: Name of the array; "" where each line is an object.
        fields: What each object has, for errors.
        read: Takes what it needs; a missing field is told as a damaged file.
        name_key: Field of what each object is called by, where only one may be called so.

    Raises:
        UserError: Another format, nothing in it, or a name that stands there twice.
    """
    names = Counter[str]()
    rows: Iterable[tuple[Any, Any]] = json_lines(path) if not key else stream_json(path)
    count = 0
    for name, row in rows:
        if key and name != key:
            continue
        try:
            read(row)
            if name_key is not None:
                names[str(row[name_key])] += 1
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: entry {count} is not in the published format, an object with {fields}; give the data set's "
                "own annotation file"
            ) from error
        count += 1
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        # Of two that differ nobody can say which is right, and one answer would count for both.
        raise UserError(
            f"{path}: {len(twice)} of {name_key} stand there twice: {first_few(twice, len(twice))}; give the data "
            "set's own annotation file"
        )
    if not count:
        raise UserError(f"{path} holds no annotations" + (f": no array {key!r} with anything in it" if key else ""))
