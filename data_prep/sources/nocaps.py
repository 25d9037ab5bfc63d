"""NoCaps: pictures of Open Images with the domain that says how far their objects are from COCO's.

Format: https://nocaps.org/download (Agrawal et al., ICCV 2019): `nocaps_val_4500_captions.json` in COCO's format with
"domain" (in-domain, near-domain, out-domain) and "open_images_id" for each image, and the two files of image info
without captions, `nocaps_val_image_info.json` and `nocaps_test_image_info.json`.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from data_prep.entries import Entry
from data_prep.errors import UserError
from data_prep.sources import published
from data_prep.sources.coco import read_coco
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request


def _split_of(file: Annotation) -> str:
    for split in ("val", "test"):
        if file.split is None and f"_{split}_" in file.path.name:
            return split
    if file.split is None:
        raise UserError(f"{file.path}: not a published name, so say which split it is: --annotations val={file.path}")
    return file.split


def _read(request: Request) -> Iterator[Entry]:
    for file in request.files:
        scratch = Path(request.config.cache or ".")
        yield from read_coco(file.path, _split_of(file), scratch, id_field="nocaps_id", silent=True)


DATA = DataSet(
    name="nocaps",
    title="NoCaps: novel objects to be captioned, with their domain",
    layouts=(
        Layout(
            name="the captions of val",
            files=(
                Expected(names=("nocaps_val_4500_captions.json",), what="https://nocaps.org/download"),
                Expected(names=("nocaps_test_image_info.json",), what="the same, without captions", optional=True),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=("nocaps", "nocaps_images", "nocaps_val", "nocaps_test", "validation", "test"),
            what="the pictures as <open_images_id>.jpg, of Open Images' validation and test set",
        ),
    ),
    splits=("val", "test"),
    splits_of=lambda request: tuple(dict.fromkeys(_split_of(file) for file in request.files)),
    read=_read,
    notes="A sample's JSON has `domain`; pictures without captions are written too: the server wants those of test.",
)
plan = functools.partial(published.plan, DATA)
