"""Drawn shapes with captions, in the files of COCO (2014), NoCaps and Flickr30K."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.shapes import REALMS
from data_prep.shapes_captions import CAPTIONS, captions
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_world import HELD_OUT, Dice, Realm, draw_scene

COCO_SPLITS = {"train": "train2014", "val": "val2014"}
"""By split: folder of the pictures, and end of the file's name."""
NOCAPS_SPLITS = ("val",)
FLICKR_SPLITS = ("train", "val", "test")

DOMAINS: Mapping[str, Realm] = {
    "in-domain": REALMS["test"],
    "near-domain": REALMS["unseen"],
    "out-domain": Realm(looks=tuple(sorted(HELD_OUT)), owned=frozenset(range(10))),
}
"""Looks that training has; one at least that it has not; none that it has."""
_APART = 1_000_000  # from one split's picture numbers to the next's
_FLICKR = 1_000_000_000  # Flickr's first number: ten digits as the real ones, and none of drawn SNLI-VE's
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


def write_flickr30k(out: Path, sizes: Mapping[str, int], image_size: int, seed: int) -> Iterator[None]:
    """Draws Flickr30K with Karpathy's splits, all of them in one file; yields after each picture.

    Args:
        out: Folder of the data set.
        sizes: Pictures by split, of `FLICKR_SPLITS`.
        image_size: Width and height in pixels.
        seed: Decides everything.
    """
    images: list[dict[str, Any]] = []
    folder = out / "flickr30k-images"
    folder.mkdir()
    for split, size in sizes.items():
        begin = _FLICKR + FLICKR_SPLITS.index(split) * _APART
        for number, picture, texts in _draw(f"shapes/{seed}/flickr30k/{split}", REALMS[split], range(size), image_size):
            name = f"{begin + number}.jpg"
            (folder / name).write_bytes(picture)
            images.append(_karpathy(len(images), name, split, texts))
            yield
    (out / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}), "utf-8")


def _draw(name: str, realm: Realm, numbers: Iterable[int], image_size: int) -> Iterator[Drawn]:
    for number in numbers:
        dice = Dice(f"{name}/{number}")
        scene = draw_scene(realm, dice)
        yield number, draw_picture(scene, image_size, dice), captions(scene, dice)


def _image(number: int, name: str, side: int) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": side, "height": side, "license": 1}


def _karpathy(image: int, name: str, split: str, texts: list[str]) -> dict[str, Any]:
    """A picture with its captions; captions are numbered through the whole file."""
    sentences = [
        {"tokens": re.findall(r"\w+", text.lower()), "raw": _sentence(text), "imgid": image, "sentid": number}
        for number, text in enumerate(texts, CAPTIONS * image)
    ]
    numbers = [sentence["sentid"] for sentence in sentences]
    return {"sentids": numbers, "imgid": image, "sentences": sentences, "split": split, "filename": name}


def _annotations(image: int, texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": _TEXTS * image + place, "image_id": image, "caption": _sentence(text)}
        for place, text in enumerate(texts)
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _write(path: Path, images: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
    head = {"info": {"description": "drawn shapes"}, "licenses": []}
    path.write_text(json.dumps({**head, "images": images, "annotations": told}), encoding="utf-8")
