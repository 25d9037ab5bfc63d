"""Visual Genome: the phrases that describe regions of a picture, taken for captions of the whole picture.

Format: version 1.2 of https://homes.cs.washington.edu/~ranjay/visualgenome/api.html (Krishna et al., IJCV 2017):
`region_descriptions.json`, [{"id": image, "regions": [{"region_id", "image_id", "phrase", "x", "y", "width",
"height"}]}], and `image_data.json`, [{"image_id", "width", "height", "url", "coco_id", "flickr_id"}]; pictures are
`VG_100K/<image_id>.jpg` and `VG_100K_2/<image_id>.jpg`.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, objects, one_line
from data_prep.errors import UserError
from data_prep.json_stream import stream_json
from data_prep.sources import RegionsConfig, published
from data_prep.sources.published import DataSet, Expected, Layout, Request


def _read(request: Request) -> Iterator[Entry]:
    regions, images = _files(request)
    known = {}
    for _, item in stream_json(images):
        if isinstance(item, dict) and isinstance(item.get("image_id"), int):
            known[item["image_id"]] = tuple(item.get(name) for name in ("width", "height", "coco_id", "flickr_id"))
    if not known:
        raise UserError(f"{images} lists no image; wanted: image_data.json of Visual Genome")
    for _, item in stream_json(regions):
        yield _entry(item, known, request.config.regions)


def _files(request: Request) -> tuple[Path, Path]:
    """The file of regions and the file of images, told apart by their first items."""
    found = {}
    for file in request.files:
        first = next((item for _, item in stream_json(file.path)), None)
        kind = "regions" if isinstance(first, dict) and "regions" in first else "images"
        if kind in found or not isinstance(first, dict):
            raise UserError(f"{file.path} is neither region_descriptions.json nor image_data.json, or given twice")
        found[kind] = file.path
    if set(found) != {"regions", "images"}:
        raise UserError("vg needs two annotation files: --annotations region_descriptions.json image_data.json")
    return found["regions"], found["images"]


def _entry(item: Any, known: Mapping[int, tuple[Any, ...]], config: RegionsConfig) -> Entry:
    if not isinstance(item, dict) or not isinstance(item.get("regions"), list):
        return Entry(split="train", id=f"malformed {item!r:.40}", skip="malformed record")
    regions = objects(item["regions"])
    number = item.get("id", regions[0].get("image_id") if regions else None)
    if not isinstance(number, int) or number not in known:
        return Entry(split="train", id=str(number), skip="regions of a picture that is not listed")
    width, height, coco, flickr = known[number]
    chosen = choose_regions(regions, width, height, config)
    ids = {"coco_id": coco, "flickr_id": None if flickr is None else str(flickr)}
    return Entry(
        split="train",
        id=str(number),
        key=f"vg{number}",
        pictures={"": [f"{number}.jpg"]},
        captions=[one_line(region["phrase"]) for region in chosen],
        skip=None if chosen else "no region is left by the filter" if regions else "no caption",
        fields={
            "vg_id": number,
            "regions": [[region.get(name) for name in ("x", "y", "width", "height")] for region in chosen],
        }
        | {name: value for name, value in ids.items() if value is not None},
    )


def choose_regions(
    regions: list[dict[str, Any]], width: Any, height: Any, config: RegionsConfig
) -> list[dict[str, Any]]:
    """The regions that are large enough, the largest where there are more than wanted, in their own order.

    Args:
        regions: With phrase, width and height in pixels.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        config: What is wanted.
    """
    area = width * height if isinstance(width, int) and isinstance(height, int) else 0
    good, told = [], set[str]()
    for region in regions:
        phrase, w, h = one_line(region.get("phrase")), region.get("width"), region.get("height")
        if not phrase or phrase.lower() in told or not isinstance(w, int) or not isinstance(h, int):
            continue
        large = min(w, h) >= config.min_side and w * h >= config.min_share * area
        if large and len(phrase.split()) >= config.min_words:
            told.add(phrase.lower())
            good.append(region)
    if config.max_count and len(good) > config.max_count:
        ranked = sorted(range(len(good)), key=lambda i: (-good[i]["width"] * good[i]["height"], i))
        good = [good[i] for i in sorted(ranked[: config.max_count])]
    return good


_WHERE = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
DATA = DataSet(
    name="vg",
    title="Visual Genome: phrases of regions as captions of the picture; ids of COCO and Flickr are kept",
    layouts=(
        Layout(
            name="regions",
            files=(
                Expected(names=("region_descriptions.json",), what=f"region_descriptions.json.zip of {_WHERE}"),
                Expected(names=("image_data.json",), what=f"image_data.json.zip of {_WHERE}"),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=("VG_100K", "VG_100K_2", "images.zip", "images2.zip", "VG_100K.tar", "VG_100K_2.tar"),
            what=f"images.zip and images2.zip of {_WHERE}, or VG_100K and VG_100K_2",
        ),
    ),
    splits=("train",),
    splits_of=lambda request: ("train",),
    read=_read,
    options=("regions",),
)
plan = functools.partial(published.plan, DATA)
