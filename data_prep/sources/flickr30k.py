"""Flickr30K: 31,783 photographs with five captions each, in Karpathy's splits or without splits.

Files: Karpathy's `dataset_flickr30k.json` or `flickr_annotations_30k.csv` (see `karpathy`), or the original
`results_20130124.token` or `results.csv` (see `flickr_text`), with lists of pictures where splits are wanted.
"""

import functools

from data_prep.sources import published
from data_prep.sources.flickr_text import read_flickr, splits_of
from data_prep.sources.published import DataSet, Expected, Layout

_WHERE = "https://shannon.cs.illinois.edu/DenotationGraph/"
DATA = DataSet(
    name="flickr30k",
    title="Flickr30K: five captions a photograph",
    layouts=(
        Layout(
            name="Karpathy's split",
            files=(
                Expected(
                    names=("dataset_flickr30k.json",),
                    what="caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/",
                ),
            ),
        ),
        Layout(
            name="Karpathy's split as a table",
            files=(
                Expected(
                    names=("flickr_annotations_30k.csv",), what="https://huggingface.co/datasets/nlphuji/flickr30k"
                ),
            ),
        ),
        Layout(
            name="the original captions",
            files=(
                Expected(names=("results_*.token", "results.csv"), what=f"flickr30k.tar.gz of {_WHERE}"),
                Expected(
                    names=("train.txt", "val.txt", "test.txt"),
                    what="lists of Flickr30k Entities, https://github.com/BryanPlummer/flickr30k_entities",
                    optional=True,
                ),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=tuple(
                f"{name}{end}" for name in ("flickr30k-images", "flickr30k_images") for end in ("", ".zip", ".tar")
            ),
            what=f"flickr30k-images.tar.gz of {_WHERE} (gunzip it first), as a folder, .tar or .zip",
        ),
    ),
    splits=("train", "val", "test"),
    splits_of=splits_of,
    read=read_flickr,
    notes="The original captions without lists give one split, train: to keep the test pictures out of training, use "
    "Karpathy's split.",
)
plan = functools.partial(published.plan, DATA)
