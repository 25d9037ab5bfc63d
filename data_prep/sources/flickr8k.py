"""Flickr8k, or a part of it: photographs with five captions each.

Files: `captions.txt` (CSV with the header `image,caption`), which comes without splits: val and test are held out by
a fixed seed, so that every run means the same ones. Or `Flickr8k.token.txt` with the published lists of pictures (see
`flickr_text`), or Karpathy's `dataset_flickr8k.json` (see `karpathy`).
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from data_prep.entries import Entry
from data_prep.errors import UserError
from data_prep.sources import published
from data_prep.sources.chance import shuffled
from data_prep.sources.flickr_text import flickr_entry, read_captions, read_flickr, sort_files, splits_of
from data_prep.sources.published import DataSet, Expected, Layout, Request

HELD_OUT = {"val": 100, "test": 100}
_SPLIT_SEED = "flickr8k/splits"


def _is_without_splits(request: Request) -> bool:
    _, texts, lists = sort_files(request)
    return bool(texts) and not lists


def _splits(request: Request) -> tuple[str, ...]:
    return ("train", *HELD_OUT) if _is_without_splits(request) else splits_of(request)


def _read(request: Request) -> Iterator[Entry]:
    return _hold_out(request) if _is_without_splits(request) else read_flickr(request)


def _hold_out(request: Request) -> Iterator[Entry]:
    """Deals the photographs to test, val and train, in an order that follows from their names alone.

    Raises:
        UserError: more is held out than there is.
    """
    sizes = HELD_OUT | {name: size for name, size in request.config.sizes.items() if name in HELD_OUT}
    photographs = dict[str, list[str]]()
    for file in request.files:
        for entry in read_captions(file.path, None, Path(request.config.cache or ".")):
            if entry.skip == "malformed record":
                yield entry
            else:
                photographs.setdefault(entry.id, []).extend(entry.captions)
    if sum(sizes.values()) >= len(photographs):
        raise UserError(
            f"data.sizes holds out {sum(sizes.values())} of {len(photographs)} photographs and leaves "
            "none to train on; lower data.sizes.val or data.sizes.test"
        )
    order = shuffled(sorted(photographs), _SPLIT_SEED)
    val = sizes["test"] + sizes["val"]
    for number, name in enumerate(order):
        split = "test" if number < sizes["test"] else "val" if number < val else "train"
        yield flickr_entry(split, name, photographs[name])


_WHERE = "Flickr8k_text.zip of the Flickr8k request form, https://forms.illinois.edu/sec/1713398"
DATA = DataSet(
    name="flickr8k",
    title="Flickr8k: five captions a photograph",
    layouts=(
        Layout(
            name="captions.txt",
            files=(Expected(names=("captions.txt",), what="https://www.kaggle.com/datasets/adityajn105/flickr8k"),),
        ),
        Layout(
            name="the original captions",
            files=(
                Expected(names=("Flickr8k.token.txt",), what=_WHERE),
                Expected(names=("Flickr_8k.*Images.txt",), what="the same: trainImages, devImages, testImages"),
            ),
        ),
        Layout(
            name="Karpathy's split",
            files=(
                Expected(
                    names=("dataset_flickr8k.json",),
                    what="caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/",
                ),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=("images.tar", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset.zip"),
            what="images.tar, Images or Flickr8k_Dataset(.zip)",
        ),
    ),
    splits=("train", "val", "test"),
    splits_of=_splits,
    read=_read,
    sized=True,
    notes="captions.txt comes without splits: --sizes.val and --sizes.test say how many are held out (100 each).",
)
plan = functools.partial(published.plan, DATA)
