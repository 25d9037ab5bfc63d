"""Flickr8k, or the thousand photographs of it: photographs with five captions each.

Files: `captions.txt` (CSV with the header `image,caption`) and `images.tar` (`images/<image>`). The data set
comes without splits here: val and test are held out by a fixed seed, so that every run means the same ones.
"""

import csv
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.records import Record, Skipped, Split
from data_prep.sources import PlannedSplit, SourceConfig, find_root
from data_prep.sources.raw import TarPictures, checksums, lines_of, shuffled

HELD_OUT = {"val": 100, "test": 100}
SPLITS = ("train", *HELD_OUT)
_SPLIT_SEED = "flickr8k/splits"
_FILES = ("captions.txt", "images.tar")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, kw_only=True)
class FlickrSplit:
    """Photographs by file name, with their captions."""

    photographs: Sequence[tuple[str, tuple[str, ...]]]
    pictures: TarPictures

    def __len__(self) -> int:
        """How many photographs there are."""
        return len(self.photographs)

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        """Reads the photographs of the positions start to stop - 1."""
        wanted = self.photographs[start:stop]
        data = self.pictures.read([f"images/{name}" for name, _ in wanted])
        for (name, captions), image in zip(wanted, data, strict=True):
            key = _UNFIT.sub("_", name.rpartition(".")[0])
            if image is None:
                yield Skipped(key=key, reason="picture missing")
            else:
                yield Record(key=key, source="flickr8k", id=name, images={"": image}, captions=captions)


def plan(config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans train, val and test; a size cuts a split down, except that more can be held out for val and test.

    Raises:
        UserError: where a file is missing, or more is held out than there is.
    """
    root = find_root(config, _FILES, "flickr8k_mini")
    sums = checksums(root, _FILES)
    sizes = HELD_OUT | {name: size for name, size in config.sizes.items() if name in HELD_OUT}
    limit = config.sizes.get("train")
    plans = {}
    for name in SPLITS:
        if config.sizes.get(name) == 0:
            continue
        identity = {"files": sums, "held_out": sizes, "limit": limit if name == "train" else None}
        plans[name] = PlannedSplit(
            identity=identity, load=functools.partial(_load, root, name, sizes, limit), shuffled=True
        )
    return plans


def _load(root: Path, name: str, sizes: dict[str, int], limit: int | None) -> Split:
    photographs = read_captions(root / "captions.txt")
    if sum(sizes.values()) >= len(photographs):
        raise UserError(
            f"data.sizes holds out {sum(sizes.values())} of {len(photographs)} photographs and leaves "
            "none to train on; lower data.sizes.val or data.sizes.test"
        )
    order = shuffled(sorted(photographs), _SPLIT_SEED)
    test, rest = order[: sizes["test"]], order[sizes["test"] :]
    val, train = rest[: sizes["val"]], rest[sizes["val"] :]
    chosen = {"test": test, "val": val, "train": train[:limit]}[name]
    chosen_photographs = [(image, photographs[image]) for image in chosen]
    return FlickrSplit(photographs=chosen_photographs, pictures=TarPictures.of(root / "images.tar"))


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads the captions of every photograph, in the order of the file.

    Raises:
        UserError: where the file is not as described above.
    """
    rows = csv.reader(lines_of(path))
    if next(rows, None) != ["image", "caption"]:
        raise UserError(f"{path} must begin with the line image,caption; fetch this file again")
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != 2 or not row[1].strip():
            raise UserError(f"{path}, row {number}: wanted a photograph and a caption, got {row}")
        captions.setdefault(row[0], []).append(row[1].strip())
    if not captions:
        raise UserError(f"{path} holds no captions; fetch this file again")
    return {image: tuple(told) for image, told in captions.items()}
