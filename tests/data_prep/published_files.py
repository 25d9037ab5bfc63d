"""Annotation files in their published formats, in little, and the way from them to checked shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.sources import SourceConfig, prepare
from data_prep.verify import verify_folder
from tests.data_prep.samples import picture
from tests.data_prep.stored import store
from tests.data_prep.test_sources import samples

KINDS = ("folder", "tar", "zip", "deflated")


def jpg(number: int) -> bytes:
    return picture(number, 8, ".jpg")


def write(path: Path, value: Any) -> str:
    """Writes JSON, or lines of JSON for .jsonl and lists of lines, or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        path.write_text(value, "utf-8")
    elif path.suffix == ".jsonl" or path.name in ("train.json", "dev.json", "test1.json"):
        path.write_text("".join(json.dumps(line) + "\n" for line in value))
    else:
        path.write_text(json.dumps(value))
    return str(path)


def shards(tmp_path: Path, name: str, **more: Any) -> tuple[dict[str, Any], dict[str, dict[str, dict]]]:
    """Writes a data set's shards and checks them; gives the account and the samples' JSON by split and key."""
    out = tmp_path / "out"
    account = prepare(SourceConfig(name=name, shuffle=False, **more), out, workers=1)
    splits = sorted(path.name for path in out.iterdir())  # the tables must be gone
    assert splits == sorted(account["splits"])
    assert all(verify_folder(out / split) == [] for split in splits)
    return account, {split: samples(out / split) for split in splits}


def images(tmp_path: Path, kind: str, names: list[str]) -> str:
    return str(store(tmp_path / "pictures", kind, {name: jpg(number) for number, name in enumerate(names)}))


def coco_json(ids: list[int], prefix: str = "") -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1}],
        "images": [{"id": n, "file_name": f"{prefix}{n:012d}.jpg", "height": 8, "width": 8} for n in ids],
        # The captions of the real files lie in no order.
        "annotations": [{"image_id": n, "id": 100 * n + k, "caption": f" {n} says {k}. "} for k in (0, 1) for n in ids],
    }


def karpathy(name: str, pictures: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {
        "images": [
            {"filename": filename, "imgid": number, "split": split, "sentids": [2 * number, 2 * number + 1],
             "sentences": [{"tokens": ["a"], "raw": f"{filename} {k}", "imgid": number, "sentid": 2 * number + k}
                           for k in (0, 1)],
             **{key: make(number) for key, make in more.items()}}
            for number, (filename, split) in enumerate(pictures.items())
        ],
        "dataset": name,
    }  # fmt: skip


def region(phrase: str, width: int, height: int, number: int) -> dict[str, Any]:
    return {"region_id": number, "width": width, "height": height, "image_id": 1, "phrase": phrase, "y": 2, "x": 3}


def img2dataset_files(urls: Mapping[str, str]) -> dict[str, bytes]:
    files = {}
    for number, (url, caption) in enumerate(urls.items()):
        value = {"caption": caption, "url": url, "key": f"{number:09d}", "status": "success", "error_message": None,
                 "width": 8, "height": 8, "original_width": 16, "exif": "{}", "sha256": "0" * 64,
                 "similarity": float("nan")}  # fmt: skip
        files[f"{number:09d}.jpg"] = jpg(number)
        files[f"{number:09d}.json"] = json.dumps(value).encode()
        files[f"{number:09d}.txt"] = caption.encode()
    return files
