"""Drawn shapes with captions, in the files of COCO (2014) and NoCaps."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.shapes import REALMS
from data_prep.shapes_captions import captions
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_world import HELD_OUT, Dice, Realm, draw_scene

COCO_SPLITS = {"train": "train2014", "val": "val2014"}
"""By split: folder of the pictures, and end of the file's name."""
NOCAPS_SPLITS = ("val",)

DOMAINS: Mapping[str, Realm] = {
    "in-domain": REALMS["test"],
    "near-domain": REALMS["unseen"],
    "out-domain": Realm(looks=tuple(sorted(HELD_OUT)), owned=frozenset(range(10))),
}
"""Looks that training has; one at least that it has not; none that it has."""
_APART = 1_000_000  # from one split's picture numbers to the next's
_TEXTS = 10  # places for a picture's captions in their numbers

Drawn = tuple[int, bytes, list[str]]
"""Number of a picture, its file, its captions."""


def write_coco(out: Path, split: str, size: int, image_size: int, seed: int) -> Iterator[None]:
    """Draws a split of COCO captions; yields after each picture.

    Args:
        out: Folder of the data set.
        split: One of `COCO_SPLITS`.
        size: Pictures.
        image_size: Width and height in pixels.
        seed: Decides everything.
    """
    part, begin = COCO_SPLITS[split], 1 + list(COCO_SPLITS).index(split) * _APART
    images: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    (out / part).mkdir()
    for number, picture, texts in _draw(f"shapes/{seed}/coco/{split}", REALMS[split], range(size), image_size):
        name = f"COCO_{part}_{begin + number:012d}.jpg"
        (out / part / name).write_bytes(picture)
        images.append(_image(begin + number, name, image_size))
        told += _annotations(begin + number, texts)
        yield
    _write(out / f"captions_{part}.json", images, told)


def write_nocaps(out: Path, split: str, size: int, image_size: int, seed: int) -> Iterator[None]:
    """Draws NoCaps, a domain after the other; arguments as of `write_coco`."""
    images: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    (out / f"nocaps_{split}").mkdir()
    each = size // len(DOMAINS)
    for place, (domain, realm) in enumerate(DOMAINS.items()):
        numbers = range(place * each, (place + 1) * each)
        for number, picture, texts in _draw(f"shapes/{seed}/nocaps/{split}", realm, numbers, image_size):
            name = f"{number:016x}"
            (out / f"nocaps_{split}" / f"{name}.jpg").write_bytes(picture)
            more = {"domain": domain, "open_images_id": name}
            images.append(_image(number, f"{name}.jpg", image_size) | more)
            told += _annotations(number, texts)
            yield
    _write(out / f"nocaps_{split}_4500_captions.json", images, told)


def _draw(name: str, realm: Realm, numbers: Iterable[int], image_size: int) -> Iterator[Drawn]:
    for number in numbers:
        dice = Dice(f"{name}/{number}")
        scene = draw_scene(realm, dice)
        yield number, draw_picture(scene, image_size, dice), captions(scene, dice)


def _image(number: int, name: str, side: int) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": side, "height": side, "license": 1}


def _annotations(image: int, texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": _TEXTS * image + place, "image_id": image, "caption": f"{text[0].upper()}{text[1:]}."}
        for place, text in enumerate(texts)
    ]


def _write(path: Path, images: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
    head = {"info": {"description": "drawn shapes"}, "licenses": []}
    path.write_text(json.dumps({**head, "images": images, "annotations": told}), encoding="utf-8")
