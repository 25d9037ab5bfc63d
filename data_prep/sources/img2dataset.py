"""What img2dataset wrote: shards of KEY.jpg, KEY.txt and KEY.json, or folders of such files.

Format: the output of https://github.com/rom1504/img2dataset with `output_format` webdataset or files: the caption in
KEY.txt, and in KEY.json "url", "caption", "status", "original_width" and the user's further columns.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.entries import Entry, sentences
from data_prep.json_stream import loads
from data_prep.members import FIELDS
from data_prep.sources import published
from data_prep.sources.published import DataSet, Expected, Request
from data_prep.stores import NoPicture, Place, Store, StoreReader, is_picture_name

# Names that every sample has, or that say nothing once the picture is there.
_LEFT_OUT = FIELDS | {"caption", "status", "error_message", "exif", "md5", "sha512"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A sample: its store's number, its key with folder and shard, its picture, and what the other files say.

    Where several shards of a split have one name (each download begins with 00000.tar), the store's number is part of
    the sample's name: those of two downloads are never taken for one that is told twice.
    """

    store: int
    name: str
    picture: Place
    value: dict[str, Any]
    text: str


def samples(request: Request) -> Iterator[Sample]:
    """The samples of all stores, in their order."""
    reader = StoreReader(request.stores)
    shards = list(zip(request.store_splits, map(_shard_name, request.stores), strict=True))
    times = Counter(shards)
    for number, (store, shard) in enumerate(zip(request.stores, shards, strict=True)):
        for key, group in itertools.groupby(store.places(number), lambda place: place.name.rpartition(".")[0]):
            parts = {place.name.rpartition(".")[2].lower(): place for place in group}
            picture = next((place for place in parts.values() if is_picture_name(place.name)), None)
            if picture is not None:
                value = loads(_read_part(reader, parts.get("json")))
                text = _read_part(reader, parts.get("txt")).decode("utf-8", "replace")
                own = (str(number) if times[shard] > 1 else "", shard[1], key)
                name = "/".join(part for part in own if part)
                value = value if isinstance(value, dict) else {}
                yield Sample(store=number, name=name, picture=picture, value=value, text=text)


def _shard_name(store: Store) -> str:
    return "" if store.kind == "folder" else store.path.rpartition("/")[2].rpartition(".")[0]


def _read_part(reader: StoreReader, place: Place | None) -> bytes:
    try:
        return b"" if place is None else reader.read(place)
    except NoPicture:
        return b""  # what it says is missing then, and the sample is counted as one without a caption


def read_samples(request: Request) -> Iterator[Entry]:
    """The samples as entries whose pictures are found by the name that `places` gives them."""
    for sample in samples(request):
        value = sample.value
        told = sentences(value.get("captions")) or sentences(sample.text) or sentences(value.get("caption"))
        yield Entry(
            split=request.store_splits[sample.store] or "train",
            id=sample.name,
            key=sample.name.rpartition("/")[2],
            pictures={"": [f"{sample.store}:{sample.name}"]},
            captions=told,
            skip=None if told else "no caption",
            fields={key: inner for key, inner in value.items() if key not in _LEFT_OUT},
        )


def places(request: Request) -> Iterator[tuple[str, Place]]:
    """The pictures under the names that `read_samples` wants them by."""
    for sample in samples(request):
        yield f"{sample.store}:{sample.name}", sample.picture


PICTURES = Expected(
    names=("*.tar",), what="the folder that `trimline download` or img2dataset wrote (00000.tar, 00001.tar, ...)"
)
DATA = DataSet(
    name="img2dataset",
    title="shards or folders that img2dataset wrote, written anew as ours",
    layouts=(),
    pictures=(PICTURES,),
    splits_of=published.splits_of_stores,
    read=read_samples,
    match="exact",
    places=places,
    notes="--images DIR gives train, --images train=DIR val=DIR more splits. To use such "
    "shards where they lie, without copying them: `trimline index DIR/train`, then the source shards.",
)
plan = functools.partial(published.plan, DATA)
