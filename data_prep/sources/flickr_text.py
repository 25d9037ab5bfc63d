"""The texts in which Flickr8k and Flickr30K came out: a caption a line, and lists of the pictures of each split.

Format: `Flickr8k.token.txt` and `results_20130124.token`: `<picture>#<number>`, a tab, the caption (Hodosh et al.,
JAIR 2013; Young et al., TACL 2014, http://hockenmaier.cs.illinois.edu/DenotationGraph/); `results.csv`: the same
captions as `image_name| comment_number| comment`; `captions.txt`: the same of Flickr8k as CSV with the header
`image,caption`; lists such as `Flickr_8k.trainImages.txt`: a picture a line.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from data_prep.csv_rows import csv_rows
from data_prep.entries import Entry, one_line
from data_prep.errors import UserError
from data_prep.grouping import Groups
from data_prep.json_stream import text_lines
from data_prep.sources.karpathy import SPLITS, is_karpathy, read_karpathy
from data_prep.sources.published import Annotation, Request

Caption = tuple[str, str] | None
"""(picture, caption); None for a line that is malformed."""

_LIST_NAMES = {"train": "train", "dev": "val", "val": "val", "test": "test"}


def caption_lines(path: Path) -> Iterator[Caption] | None:
    """The captions of a file in any of the formats above; None for a file of another kind.

    Raises:
        UserError: the file is no text.
    """
    first = next((line for _, line in text_lines(path) if line is not None and line.strip()), "")
    if first == "image,caption":
        return _csv_lines(path)
    if [part.strip() for part in first.split("|")] == ["image_name", "comment_number", "comment"]:
        return _results_lines(path)
    if "\t" in first and "#" in first.partition("\t")[0]:
        return _token_lines(path)
    return None


def _token_lines(path: Path) -> Iterator[Caption]:
    for _, line in text_lines(path):
        name, mark, caption = (line or "").partition("\t")
        name, sharp, _ = name.rpartition("#")
        if mark and sharp and name:
            yield name, one_line(caption)
        elif line is None or line.strip():
            yield None


def _results_lines(path: Path) -> Iterator[Caption]:
    for number, line in text_lines(path):
        if number > 1 and (line is None or line.strip()):
            parts = (line or "").split("|", 2)
            yield (parts[0].strip(), one_line(parts[2])) if len(parts) == 3 and parts[0].strip() else None


def _csv_lines(path: Path) -> Iterator[Caption]:
    for row in itertools.islice(csv_rows(path), 1, None):
        yield (row[0], one_line(row[1])) if row is not None and len(row) == 2 and row[0] else None


def list_split(file: Annotation) -> str | None:
    """The split that a list of pictures is for, by what the user says or its published name."""
    stem = file.path.name.lower()
    named = (split for word, split in _LIST_NAMES.items() if word in stem)
    return file.split or next(named, None)


def read_list(path: Path) -> list[str]:
    """The pictures of a list; those of Flickr30k Entities' lists are given without an ending."""
    names = [line.strip() for _, line in text_lines(path) if line and line.strip()]
    return [name if "." in name else f"{name}.jpg" for name in names]


def sort_files(request: Request) -> tuple[list[Path], list[Path], list[Annotation]]:
    """Tells Karpathy's jsons, files of captions and lists of pictures apart.

    Raises:
        UserError: for a file that is none of them.
    """
    jsons, texts, lists = [], list[Path](), []
    for file in request.files:
        if is_karpathy(file.path):
            jsons.append(file.path)
        elif file.path.suffix != ".json" and caption_lines(file.path) is not None:
            texts.append(file.path)
        elif file.path.suffix != ".json" and list_split(file):
            lists.append(file)
        else:
            raise UserError(f"{file.path} is neither Karpathy's json nor a file of captions nor a list of pictures")
    if jsons and (texts or lists):
        raise UserError(f"{jsons[0]} has captions and splits of its own: leave the other annotation files out")
    if lists and not texts:
        raise UserError(f"{lists[0].path} lists pictures, but no file of captions is given with it")
    return jsons, texts, lists


def splits_of(request: Request) -> tuple[str, ...]:
    """Karpathy's splits, those of the lists, or train alone."""
    jsons, _, lists = sort_files(request)
    return SPLITS if jsons else tuple(dict.fromkeys(list_split(file) or "" for file in lists)) or ("train",)


def read_flickr(request: Request) -> Iterator[Entry]:
    """The pictures of the files given, each with all of its captions."""
    jsons, texts, lists = sort_files(request)
    for path in jsons:
        yield from read_karpathy(path)
    splits = {name: list_split(file) or "" for file in lists for name in read_list(file.path)}
    told = set[str]()
    for path in texts:
        for entry in read_captions(path, splits or None, Path(request.config.cache or ".")):
            told.add(entry.id)
            yield entry
    for name in sorted(splits.keys() - told):
        yield Entry(split=splits[name], id=name, skip="no caption")


def read_captions(path: Path, splits: dict[str, str] | None, scratch: Path) -> Iterator[Entry]:
    """The pictures of a file of captions; of those that are in no split, where there are splits, nothing is said."""
    default = next(iter(splits.values())) if splits else "train"
    with Groups(scratch) as groups:
        for number, caption in enumerate(caption_lines(path) or ()):
            if caption is None:
                yield Entry(split=default, id=f"malformed caption {number}", skip="malformed record")
            else:
                groups.add(caption[0], caption)
        for values in groups:
            name, captions = values[0][0], [caption for _, caption in values if caption]
            split = "train" if splits is None else splits.get(name)
            if split is not None:
                yield flickr_entry(split, name, captions)


def flickr_entry(split: str, name: str, captions: list[str]) -> Entry:
    """A picture of Flickr's, whose name begins with its number there."""
    key = name.rpartition(".")[0] or name
    return Entry(
        split=split,
        id=name,
        key=key,
        pictures={"": [name]},
        captions=captions,
        skip=None if captions else "no caption",
        fields={"flickr_id": key.partition("_")[0]},
    )
