"""Karpathy's splits of COCO, Flickr30K and Flickr8k: one json with captions and splits for all of a data set.

Format: `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json` as published with Karpathy and Fei-Fei,
"Deep Visual-Semantic Alignments for Generating Image Descriptions" (CVPR 2015), in `caption_datasets.zip`:
{"dataset", "images": [{"filename", "imgid", "split", "sentids", "sentences": [{"raw", "tokens", "sentid"}], and for
COCO "filepath" and "cocoid"}]}. COCO's fourth split, `restval`, belongs to train.

The same of Flickr30K as a table: `flickr_annotations_30k.csv` of https://huggingface.co/datasets/nlphuji/flickr30k,
with the columns raw and sentids (a json list each), split, filename, img_id.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.csv_rows import csv_rows
from data_prep.entries import Entry, objects, one_line
from data_prep.json_stream import loads, stream_json, text_lines

SPLITS = ("train", "val", "test")
_COLUMNS = {"raw", "sentids", "split", "filename", "img_id"}
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def is_karpathy(path: Path) -> bool:
    """Whether a file is one of Karpathy's: a json whose first image has sentences, or the table of the same.

    Raises:
        UserError: where it is not JSON, or no text.
    """
    if path.suffix == ".csv":
        header = next((line for _, line in text_lines(path)), None)
        return set((header or "").split(",")) == _COLUMNS
    if path.suffix != ".json":
        return False
    first = next((item for key, item in stream_json(path) if key == "images"), None)
    return isinstance(first, dict) and "sentences" in first


def read_karpathy(path: Path) -> Iterator[Entry]:
    """The pictures of the file, each with all of its captions."""
    if path.suffix == ".csv":
        yield from (_entry(item) for item in _rows(path))
        return
    for key, item in stream_json(path):
        if key == "images":
            yield _entry(item)


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """The rows of the table as the images of the json; None for a malformed one."""
    rows = csv_rows(path)
    header = next(rows, None) or []
    for values in rows:
        if values is None or len(values) != len(header):
            yield None
            continue
        row = dict(zip(header, values, strict=True))
        raw, numbers = loads(row["raw"]), loads(row["sentids"])
        good = isinstance(raw, list) and isinstance(numbers, list) and len(raw) == len(numbers)
        told = [{"raw": text, "sentid": number} for text, number in zip(raw, numbers, strict=True)] if good else []
        yield {
            "filename": row["filename"],
            "split": row["split"],
            "imgid": loads(row["img_id"]),
            "sentences": told,
        }


def _entry(item: Any) -> Entry:
    named = isinstance(item, dict) and isinstance(item.get("filename"), str)
    if not named or str(item.get("split")) not in _SPLITS:
        return Entry(split="train", id=f"malformed {item!r:.40}", skip="malformed record")
    told = [(one_line(one.get("raw")), one.get("sentid")) for one in objects(item.get("sentences"))]
    told = [(text, number) for text, number in told if text]
    name = item["filename"]
    fields = {"imgid": item.get("imgid"), "sentids": [number for _, number in told], "karpathy_split": item["split"]}
    names, own = [name], name
    if isinstance(item.get("cocoid"), int):
        # The pictures of 2014 have other names in the release of 2017.
        names, own = [name, f"{item['cocoid']:012d}.jpg"], str(item["cocoid"])
        fields["coco_id"] = item["cocoid"]
        key = f"{item['cocoid']:012d}"
    else:
        key = name.rpartition(".")[0]
        fields["flickr_id"] = key.partition("_")[0]
    return Entry(
        split=_SPLITS[item["split"]],
        id=own,
        key=key,
        pictures={"": names},
        captions=[text for text, _ in told],
        skip=None if told else "no caption",
        fields=fields,
    )
