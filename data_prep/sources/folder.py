"""Pictures with their captions in a text file beside each: dog.jpg and dog.txt, a caption a line.

Format: none that was published; what captioning tools write. Folders, tars and zips of such files.
"""

import functools
import os
from collections.abc import Iterator

from data_prep.entries import Entry, sentences
from data_prep.sources import published
from data_prep.sources.published import DataSet, Expected, Request
from data_prep.stores import STORED, NoPicture, Place, Store, StoreReader, is_picture_name


def _pictures(request: Request) -> Iterator[tuple[str, Place]]:
    for number, store in enumerate(request.stores):
        for place in store.places(number):
            if is_picture_name(place.name):
                yield f"{number}/{place.name}", place


def _read(request: Request) -> Iterator[Entry]:
    reader = StoreReader(request.stores)
    texts: dict[str, Place] = {}
    number = -1
    for name, place in _pictures(request):
        if place.store != number:
            number = place.store
            texts = _texts(request.stores[number], number)
        beside = f"{place.name.rpartition('.')[0]}.txt"
        told = _captions(reader, texts.get(beside) or _beside(request.stores[number], number, beside))
        yield Entry(
            split=request.store_splits[number] or "train",
            id=place.name if len(request.stores) == 1 else name,
            key=place.name.rpartition("/")[2].rpartition(".")[0],
            pictures={"": [name]},
            captions=told,
            skip=None if told else "no caption",
        )


def _texts(store: Store, number: int) -> dict[str, Place]:
    """The text files of an archive; a folder is asked for each when it is wanted, for it may hold millions."""
    if store.kind == "folder":
        return {}
    return {place.name: place for place in store.places(number) if place.name.endswith(".txt")}


def _beside(store: Store, number: int, name: str) -> Place | None:
    path = os.path.join(store.path, name)
    # A name in an archive says nothing about the file system, absolute as it may be.
    if store.kind != "folder" or not os.path.isfile(path):
        return None
    return Place(number, name, 0, os.path.getsize(path), STORED)


def _captions(reader: StoreReader, place: Place | None) -> list[str]:
    try:
        return [] if place is None else sentences(reader.read(place).decode("utf-8-sig", "replace").splitlines())
    except NoPicture:
        return []  # a text that cannot be read says nothing: the picture is counted as one without a caption


DATA = DataSet(
    name="folder",
    title="pictures with a .txt of captions beside each (dog.jpg, dog.txt), a caption a line",
    layouts=(),
    pictures=(Expected(names=("images",), what="folders, tars or zips with the pictures and the texts"),),
    splits_of=published.splits_of_stores,
    read=_read,
    match="exact",
    places=_pictures,
    notes="--images DIR gives train, --images train=DIR val=DIR more splits.",
)
plan = functools.partial(published.plan, DATA)
