"""Lists of captions and URLs (SBU, CC3M, CC12M): the list says what was asked for, the pictures are what was got.

With a list given, every row of it is a sample that is asked for, and its picture is found by its URL in what
img2dataset or `trimline download` wrote; a row without one is counted as a missing picture. Without a list the samples
are what was got, captions included.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, one_line
from data_prep.errors import UserError
from data_prep.json_stream import stream_json, text_lines
from data_prep.sources.img2dataset import PICTURES, places, read_samples, samples
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request, splits_of_stores
from data_prep.stores import Place

Row = tuple[str, str] | None
"""(url, caption); None for a row that is malformed."""


def tsv_rows(path: Path, url: int, caption: int) -> Iterator[Row]:
    """The rows of a file with tabs between its columns and no header; quotes mean nothing in it.

    Args:
        path: The file.
        url: The number of the column with the URL.
        caption: The number of the column with the caption.
    """
    for _, line in text_lines(path):
        parts = [] if line is None else line.split("\t")
        good = len(parts) > max(url, caption) and "://" in parts[url]
        yield (parts[url].strip(), parts[caption]) if good else None


def _splits(split_of: Callable[[Annotation], str]) -> Callable[[Request], tuple[str, ...]]:
    return lambda request: tuple(dict.fromkeys(map(split_of, request.files))) or splits_of_stores(request)


def url_data_set(
    name: str,
    title: str,
    *,
    layouts: tuple[Layout, ...],
    rows: Callable[[Sequence[Annotation]], Iterator[tuple[str, Row]]],
    split_of: Callable[[Annotation], str],
    splits: tuple[str, ...] = ("train",),
) -> DataSet:
    """A data set of URLs.

    Args:
        name: As on the command line.
        title: A line about it.
        layouts: The lists as they are published.
        rows: The (split, row) of the lists.
        split_of: The split of a list.
        splits: All that there are.
    """

    def read(request: Request) -> Iterator[Entry]:
        if not request.files:
            return read_samples(request)
        return (_entry(name, split, number, row) for number, (split, row) in enumerate(rows(request.files)))

    def find(request: Request) -> Iterator[tuple[str, Place]]:
        return _by_url(request) if request.files else places(request)

    return DataSet(
        name=name,
        title=title,
        layouts=(*layouts, Layout(name="no list", files=())),
        pictures=(PICTURES,),
        splits=splits,
        splits_of=_splits(split_of),
        read=read,
        match="exact",
        places=find,
        notes="DIR is what `trimline download` or img2dataset wrote (the former are shards already: this source writes "
        f"them anew, cleaned or merged). `trimline shard {name} --annotations LIST --images DIR` asks for every row of "
        "the list and counts those without a picture as missing; with --images DIR alone the samples are what was got, "
        "in one split, train (or --images train=DIR val=DIR).",
    )


def _entry(name: str, split: str, number: int, row: Row) -> Entry:
    key = f"{name}-{number:08d}"
    if row is None:
        return Entry(split=split, id=key, skip="malformed record")
    url, caption = row[0], one_line(row[1])
    return Entry(
        split=split,
        id=key,
        pictures={"": [url]},
        captions=[caption],
        skip=None if caption else "no caption",
        fields={"url": url},
    )


def _by_url(request: Request) -> Iterator[tuple[str, Place]]:
    found = False
    for sample in samples(request):
        if isinstance(sample.value.get("url"), str):
            found = True
            yield sample.value["url"], sample.picture
    if not found:
        where = ", ".join(store.path for store in request.stores)
        raise UserError(
            f"{where} holds no KEY.json with a url, so pictures cannot be matched with the list; give what "
            "img2dataset wrote, or leave --annotations out"
        )


def _cc3m_split(file: Annotation) -> str:
    return file.split or ("val" if "alidation" in file.path.name else "train")


def _each(
    read: Callable[[Path], Iterator[Row]], split_of: Callable[[Annotation], str]
) -> Callable[[Sequence[Annotation]], Iterator[tuple[str, Row]]]:
    return lambda files: ((split_of(file), row) for file in files for row in read(file.path))


def _train(file: Annotation) -> str:
    return file.split or "train"


def _sbu_rows(files: Sequence[Annotation]) -> Iterator[tuple[str, Row]]:
    lists = [file for file in files if file.path.suffix == ".json"]
    texts = {("urls" if "url" in file.path.name.lower() else "captions"): file for file in files if file not in lists}
    for file in lists:
        yield from ((_train(file), row) for row in _sbu_json(file.path))
    if texts and (set(texts) != {"urls", "captions"} or len(texts) + len(lists) != len(files)):
        raise UserError(
            "sbu as text is two files that belong together, SBU_captioned_photo_dataset_urls.txt and "
            "SBU_captioned_photo_dataset_captions.txt; give both, or sbu-captions-all.json"
        )
    if texts:
        lines = itertools.zip_longest(text_lines(texts["urls"].path), text_lines(texts["captions"].path))
        for first, second in lines:
            url, caption = first[1] if first else None, second[1] if second else None
            row = (url.strip(), caption) if url is not None and caption is not None and "://" in url else None
            yield _train(texts["urls"]), row


def _sbu_json(path: Path) -> Iterator[Row]:
    """The arrays stand one after the other in the file: it is read at two places at once, to keep none of them."""
    for url, caption in itertools.zip_longest(_sbu_column(path, "image_urls"), _sbu_column(path, "captions")):
        good = isinstance(url, str) and "://" in url and isinstance(caption, str)
        yield (url, caption) if good else None


def _sbu_column(path: Path, name: str) -> Iterator[Any]:
    return (item for key, item in stream_json(path) if key == name)


CC3M = url_data_set(
    "cc3m",
    "Conceptual Captions: 3.3 million URLs with cleaned alt texts",
    layouts=(
        Layout(
            name="the list",
            files=(
                Expected(
                    names=("Train_GCC-training.tsv",),
                    what="https://ai.google.com/research/ConceptualCaptions/download; columns caption, url, no header",
                ),
                Expected(names=("Validation_GCC-*.tsv",), what="the same, split val", optional=True),
            ),
        ),
    ),
    rows=_each(lambda path: tsv_rows(path, url=1, caption=0), _cc3m_split),
    split_of=_cc3m_split,
    splits=("train", "val"),
)
CC12M = url_data_set(
    "cc12m",
    "Conceptual 12M: 12.4 million URLs with alt texts",
    layouts=(
        Layout(
            name="the list",
            files=(
                Expected(
                    names=("cc12m.tsv",),
                    what="https://github.com/google-research-datasets/conceptual-12m; columns url, caption, no header",
                ),
            ),
        ),
    ),
    rows=_each(lambda path: tsv_rows(path, url=0, caption=1), _train),
    split_of=_train,
)
SBU = url_data_set(
    "sbu",
    "SBU Captioned Photos: a million Flickr URLs with captions",
    layouts=(
        Layout(
            name="the json",
            files=(
                Expected(
                    names=("sbu-captions-all.json",),
                    what="sbu-captions-all.tar.gz of https://www.cs.rice.edu/~vo9/sbucaptions/; "
                    "image_urls, captions, user_ids",
                ),
            ),
        ),
        Layout(
            name="two texts",
            files=(
                Expected(
                    names=("SBU_captioned_photo_dataset_urls.txt",),
                    what="SBUCaptionedPhotoDataset.tar.gz of the same page; a URL a line",
                ),
                Expected(names=("SBU_captioned_photo_dataset_captions.txt",), what="the same; a caption a line"),
            ),
        ),
    ),
    rows=_sbu_rows,
    split_of=_train,
)
