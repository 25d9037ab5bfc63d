"""COCO captions: the raw files of 2014 or 2017, or Karpathy's split of those of 2014.

Format: the caption annotations of https://cocodataset.org/#format-data (Chen et al., "Microsoft COCO Captions", 2015):
{"images": [{"id", "file_name", ...}], "annotations": [{"id", "image_id", "caption"}]}, published in
`annotations_trainval2017.zip` and `annotations_trainval2014.zip`; of test `image_info_test2014.json` and its like have
the images alone, to be told of. Karpathy's json: see `karpathy.py`.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, one_line
from data_prep.errors import UserError
from data_prep.grouping import Groups
from data_prep.json_stream import stream_json
from data_prep.sources import published
from data_prep.sources.karpathy import SPLITS, is_karpathy, read_karpathy
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

_NAME = re.compile(r"captions_(?P<told>train|val)20\d\d\.json|image_info_(?P<silent>test)(?:-dev)?20\d\d\.json")


def split_of(file: Annotation) -> str:
    """The split of a raw file: what the user says, or what its published name says.

    Raises:
        UserError: neither says anything.
    """
    match = _NAME.fullmatch(file.path.name)
    if file.split is None and match is None:
        raise UserError(f"{file.path}: not a published name, so say which split it is: --annotations train={file.path}")
    return file.split or (match["told"] or match["silent"] if match else "")


def _splits(request: Request) -> tuple[str, ...]:
    names = [SPLITS if is_karpathy(file.path) else (split_of(file),) for file in request.files]
    return tuple(dict.fromkeys(name for part in names for name in part))


def _read(request: Request) -> Iterator[Entry]:
    for file in request.files:
        if is_karpathy(file.path):
            yield from read_karpathy(file.path)
        else:
            match = _NAME.fullmatch(file.path.name)
            silent = match is not None and match["silent"] is not None
            yield from read_coco(file.path, split_of(file), Path(request.config.cache or "."), silent=silent)


def read_coco(
    path: Path, split: str, scratch: Path, *, id_field: str = "coco_id", silent: bool = False
) -> Iterator[Entry]:
    """The pictures of a file in COCO's format, each with all of its captions.

    Args:
        path: The file.
        split: What to call its split.
        scratch: A folder for a temporary file of about the same size.
        id_field: What to call the pictures' numbers in the samples' JSON.
        silent: Whether pictures without a caption are good too.

    Raises:
        UserError: the file is not JSON.
    """
    with Groups(scratch) as groups:
        for key, item in stream_json(path):
            if key not in ("images", "annotations"):
                continue
            number = item.get("id" if key == "images" else "image_id") if isinstance(item, dict) else None
            if isinstance(number, int):
                groups.add(number, [key, item])
            else:
                yield Entry(split=split, id=f"malformed {item!r:.40}", skip="malformed record")
        for values in groups:
            images = [item for key, item in values if key == "images"]
            told = [item for key, item in values if key == "annotations"]
            for image in images:
                yield _entry(split, image, told, id_field, silent=silent)
            if not images:
                name = str(told[0]["image_id"])
                yield Entry(split=split, id=name, skip="caption of a picture that is not listed")


def _entry(split: str, image: dict[str, Any], told: list[dict[str, Any]], id_field: str, *, silent: bool) -> Entry:
    good = [(text, one.get("id")) for one in told if (text := one_line(one.get("caption")))]
    name = image.get("file_name")
    if not isinstance(name, str):
        return Entry(split=split, id=str(image["id"]), skip="malformed record")
    extra = {key: image[key] for key in ("domain", "open_images_id", "coco_url") if image.get(key)}
    return Entry(
        split=split,
        id=str(image["id"]),
        key=name.rpartition("/")[2].rpartition(".")[0],
        pictures={"": [name]},
        captions=[text for text, _ in good],
        skip=None if good or silent else "no caption",
        fields={id_field: image["id"], "caption_ids": [number for _, number in good], "file_name": name} | extra,
    )


_WHERE = "https://cocodataset.org/#download"
DATA = DataSet(
    name="coco",
    title="COCO captions: 2014, 2017 or Karpathy's split; five captions a picture",
    layouts=(
        Layout(
            name="the raw files of 2017",
            files=(Expected(names=("captions_*2017.json",), what=f"annotations_trainval2017.zip of {_WHERE}"),),
        ),
        Layout(
            name="the raw files of 2014",
            files=(Expected(names=("captions_*2014.json",), what=f"annotations_trainval2014.zip of {_WHERE}"),),
        ),
        Layout(
            name="Karpathy's split",
            files=(
                Expected(
                    names=("dataset_coco.json",),
                    what="caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/",
                ),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=tuple(
                f"{part}{year}{end}"
                for year in (2014, 2017)
                for part in ("train", "val")
                for end in ("", ".zip", ".tar")
            ),
            what=f"train2017, val2017 (or 2014) as folders, .zip or .tar, of {_WHERE}",
        ),
    ),
    splits=SPLITS,
    splits_of=_splits,
    read=_read,
    notes="captions_train* gives train, captions_val* val, image_info_test* (given with --annotations) a test without "
    "captions. Karpathy's restval goes to train; his split is of the "
    "pictures of 2014, which are found under their names of 2017 too.",
)

plan = functools.partial(published.plan, DATA)
