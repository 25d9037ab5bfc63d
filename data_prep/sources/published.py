"""What the sources with annotation files share: which files are expected, finding them, and turning them into splits.

A data set's module says which files it is published as and turns them into entries; this module does the rest. The
entries and the index of the pictures are written once into a cache folder, from which any process reads any sample.
"""

import contextlib
import fnmatch
import functools
import hashlib
import json
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.entries import Entry, EntrySplit, write_entries
from data_prep.errors import UserError
from data_prep.files import atomic_dir, disk_full, is_disk_full, sha256_file
from data_prep.pictures import Match, write_index
from data_prep.records import Split
from data_prep.sources import PlannedSplit, SourceConfig, check_sizes
from data_prep.stores import Place, Store, find_stores, is_picture_name

log = logging.getLogger(__name__)

_DEPTH = 3
# Smaller files are hashed whole, larger ones at so many places: a run must not read terabytes to see what is done.
_WHOLE = 64 << 20
_PLACES, _PIECE = 32, 1 << 16
_SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "dev", "test"})
# How files are given to the two commands that make shards: `trimline shard` first, then `trimline run`.
_ROOT = "--root DIR (in a run --data.root DIR)"
_ANNOTATIONS = "--annotations FILE ... (in a run --data.annotations '[FILE, ...]')"
_IMAGES = "--images PATH ... (in a run --data.images '[PATH, ...]')"
_SPLIT = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Files as they are published.

    Attributes:
        names: File or folder names, with `*` for what differs.
        what: What is in them, and where they are published.
        optional: Whether it also goes without.
    """

    names: tuple[str, ...]
    what: str
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One of the forms in which a data set's annotations are published."""

    name: str
    files: tuple[Expected, ...]


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An annotation file, and the split that the user said it is."""

    path: Path
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a data set.

    Attributes:
        files: Its annotation files.
        stores: Where its pictures lie.
        store_splits: For each of them the split that the user said it is, or None.
        config: The configuration.
    """

    files: tuple[Annotation, ...]
    stores: tuple[Store, ...]
    store_splits: tuple[str | None, ...]
    config: SourceConfig


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set with annotation files and pictures.

    Attributes:
        name: As on the command line.
        title: A line about it.
        layouts: The forms of its annotations; one without files says that it also goes without.
        pictures: Its pictures as they are published.
        splits: The splits there can be; empty where the files decide.
        splits_of: The splits that a request gives; called before anything is written, so it must be quick.
        read: The entries of a request, in an order that follows from the files alone.
        match: How pictures are looked up; None leaves it to the user.
        sized: Whether `config.sizes` decides what goes into which split.
        cuts: Whether `read` itself keeps each split to its size, because some of its entries belong together.
        options: The groups of the configuration that mean something here.
        notes: What else a user should know.
        places: Lists the pictures under the names by which the entries want them, where that is not their own.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    pictures: tuple[Expected, ...]
    splits: tuple[str, ...] = ()
    splits_of: Callable[[Request], tuple[str, ...]]
    read: Callable[[Request], Iterable[Entry]]
    match: Match | None = "name"
    sized: bool = False
    cuts: bool = False
    options: tuple[str, ...] = ()
    notes: str = ""
    places: Callable[[Request], Iterable[tuple[str, Place]]] | None = None


def plan(data: DataSet, config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans the splits that a data set's files give.

    Raises:
        UserError: a file is missing or not of the data set's format, or no split of `config.sizes`.
    """
    request = find_request(data, config)
    splits = data.splits_of(request)
    given = {name: size for name, size in config.sizes.items() if size or name not in data.splits}
    check_sizes(replace(config, sizes=given), splits)
    identity = {
        "annotations": [[file.path.name, file.split, sha256_file(file.path)] for file in request.files],
        "pictures": [fingerprint_store(store) for store in request.stores],
        "options": {name: asdict(getattr(config, name)) for name in data.options},
        "match": _match(data, config),
        "sizes": config.sizes if data.sized else None,
    } | _roles(data, request)
    if data.cuts and any(config.sizes.values()):
        identity["cut"] = "what belongs together"
    plans = {}
    for name in splits:
        limit = config.sizes.get(name)
        if limit != 0:
            own = identity | {"limit": limit, "seed": config.seed if limit else None}
            load = functools.partial(_load, data, request, splits, name, identity, limit)
            reads = tuple(store.path for store in request.stores)
            plans[name] = PlannedSplit(identity=own, load=load, reads=reads)
    return plans


def _match(data: DataSet, config: SourceConfig) -> Match:
    return data.match or config.match


def _roles(data: DataSet, request: Request) -> dict[str, Any]:
    """What else counts of the pictures' stores: their splits if given, folders' names where paths must agree."""
    roles: dict[str, Any] = {}
    if any(request.store_splits):
        roles["picture_splits"] = request.store_splits
    if _match(data, request.config) == "path":
        roles["picture_folders"] = [Path(store.path).name for store in request.stores if store.kind == "folder"]
    return roles


def find_request(data: DataSet, config: SourceConfig) -> Request:
    """Finds the files that a configuration names, or those of published names below its `root`.

    Raises:
        UserError: saying what is missing, what is wanted and with which option it is given.
    """
    files, images = tuple(split_paths(config.annotations)), list(config.images)
    root = None if config.root is None else _root(data, config.root)
    if not files and data.layouts:
        if root is None and not _optional(data):
            raise UserError(
                f"data.root is not given, nor data.annotations: {data.name} wants {_wanted(data)}; give "
                f"{_ROOT} or {_ANNOTATIONS}"
            )
        files = tuple(Annotation(path=path) for path in _find_annotations(data, root)) if root else ()
    for file in files:
        if not file.path.is_file():
            raise UserError(f"data.annotations: {file.path} is no file; {data.name} wants {_wanted(data)}")
    if not images and root is not None:
        images = [str(path) for path in _find(root, [name for one in data.pictures for name in one.names])]
    if not images:
        names = " or ".join(one.what for one in data.pictures)
        where = f"none are below data.root={config.root}" if root else "data.images is not given"
        raise UserError(f"{data.name} needs pictures, but {where}: {names}; give folders, tars or zips: {_IMAGES}")
    given = [(file.split, find_stores([str(file.path)], "--images")) for file in split_paths(images)]
    return Request(
        files=files,
        stores=tuple(store for _, stores in given for store in stores),
        store_splits=tuple(split for split, stores in given for _ in stores),
        config=config,
    )


def splits_of_stores(request: Request) -> tuple[str, ...]:
    """The splits of data sets that are nothing but their pictures' stores: `SPLIT=DIR`, or train.

    Raises:
        UserError: archives that lie in folders of several splits' names would all become train.
    """
    stores = zip(request.stores, request.store_splits, strict=True)
    unsaid = [Path(store.path).parent for store, split in stores if split is None and store.kind != "folder"]
    parts = {folder.name: folder for folder in unsaid if folder.name in _SPLIT_NAMES}
    if len(parts) > 1:
        told = " ".join(f"{name}={folder}" for name, folder in sorted(parts.items()))
        raise UserError(f"the pictures lie in folders of several splits: give --images {told}, or only one of them")
    return tuple(dict.fromkeys(split or "train" for split in request.store_splits))


def split_paths(given: Sequence[str]) -> Iterator[Annotation]:
    """Reads `FILE` or `SPLIT=FILE`."""
    for text in given:
        match = _SPLIT.fullmatch(text)
        if match and not Path(text).expanduser().exists():
            yield Annotation(path=Path(match[2]).expanduser(), split=match[1])
        else:
            yield Annotation(path=Path(text).expanduser())


def _optional(data: DataSet) -> bool:
    return any(not layout.files for layout in data.layouts)


def _wanted(data: DataSet) -> str:
    return ", or ".join(
        " and ".join("/".join(one.names) for one in layout.files if not one.optional)
        for layout in data.layouts
        if layout.files
    )


def _root(data: DataSet, given: str) -> Path:
    root = Path(given).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={given} is not a folder: {data.name} wants {_wanted(data)}; give {_ROOT}")
    return root


def _find_annotations(data: DataSet, root: Path) -> list[Path]:
    """The annotation files of the one layout that is there."""
    found, missing = {}, ""
    for layout in data.layouts:
        parts = [_find(root, one.names, files_only=True) for one in layout.files]
        lacking = [one for part, one in zip(parts, layout.files, strict=True) if not (part or one.optional)]
        if lacking and any(parts):
            missing = f"{root} has no {' and no '.join('/'.join(one.names) for one in lacking)}"
        if all(part or one.optional for part, one in zip(parts, layout.files, strict=True)) and any(parts):
            found[layout.name] = list(dict.fromkeys(path for part in parts for path in part))
    if not found and _optional(data) and not missing:
        return []
    if not found:
        raise UserError(
            f"{missing or f'data.root={root} holds none of the files'}: {data.name} wants {_wanted(data)}; put them "
            f"there under these names, or give them with {_ANNOTATIONS}"
        )
    if len(found) > 1:
        raise UserError(f"{root} holds {data.name} as {' and as '.join(found)}: choose with {_ANNOTATIONS}")
    return next(iter(found.values()))


def _find(root: Path, names: Sequence[str], *, files_only: bool = False) -> list[Path]:
    """What lies below a folder, at most three levels deep, under one of these names; not inside of what fits."""
    found: list[Path] = []
    todo = [(root, 0)]
    while todo:
        folder, depth = todo.pop(0)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue  # such as the ._NAME that macOS puts beside each file that it copies
            fits = any(fnmatch.fnmatchcase(entry.name, name) for name in names)
            if fits and (entry.is_file() or not files_only):
                found.append(Path(entry.path))
            elif entry.is_dir() and depth < _DEPTH - 1:
                todo.append((Path(entry.path), depth + 1))
    return found


def fingerprint_store(store: Store) -> list[Any]:
    """Stands for a store's content, wherever it lies.

    An archive: its size and a hash of its bytes, of large ones at 32 places. A folder: a hash of its files' names and
    sizes.
    """
    path = Path(store.path)
    digest = hashlib.sha256()
    if store.kind == "folder":
        for place in store.places(0):
            digest.update(f"{place.name}\0{place.size}\0".encode("utf-8", "surrogateescape"))
        return [store.kind, digest.hexdigest()]
    size = path.stat().st_size
    if size <= _WHOLE:
        return [store.kind, path.name, size, sha256_file(path)]
    with open(path, "rb") as file:
        for number in range(_PLACES):
            file.seek((size - _PIECE) * number // (_PLACES - 1))
            digest.update(file.read(_PIECE))
    return [store.kind, path.name, size, digest.hexdigest()]


def _load(
    data: DataSet, request: Request, splits: tuple[str, ...], name: str, identity: dict[str, Any], limit: int | None
) -> Split:
    """Writes the data set's tables into the cache folder, unless they are there, and opens a split of them."""
    config = request.config
    digest = hashlib.sha256(json.dumps([data.name, identity, config.sizes, config.seed], sort_keys=True).encode())
    where = [store.path for store in request.stores]
    digest.update(json.dumps(where).encode())
    folder = _cache(config) / f"{data.name}-{digest.hexdigest()[:20]}"
    if not folder.is_dir():
        try:
            _build(data, request, splits, folder)
        except UserError:
            for empty in (folder.parent, folder.parent.parent):
                with contextlib.suppress(OSError):  # only what is empty goes
                    empty.rmdir()
            raise
    positions = None
    split = EntrySplit(folder, name, source=data.name, match=_match(data, config))
    if limit is not None and limit < len(split) and not data.cuts:
        chosen = random.Random(f"{data.name}/{name}/{config.seed}").sample(range(len(split)), limit)
        positions = folder / f"{name}.{limit}-{config.seed}.npy"
        np.save(positions, np.array(sorted(chosen), dtype=np.int64), allow_pickle=False)
        split = EntrySplit(folder, name, source=data.name, match=_match(data, config), positions=positions)
    return split


def _cache(config: SourceConfig) -> Path:
    if config.cache is None:
        raise ValueError("config.cache is not set: `prepare` chooses a folder where the user named none")
    folder = Path(config.cache).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; give another one with --cache") from error
    return folder


def _build(data: DataSet, request: Request, splits: tuple[str, ...], folder: Path) -> None:
    with atomic_dir(folder) as aside:
        try:
            good = write_entries(aside, _counted(data, request), splits)
            (aside / "pictures").mkdir()
            places = data.places or own_names
            pictures = write_index(
                aside / "pictures", request.stores, places(request), exact=_match(data, request.config) == "exact"
            )
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(folder, error) from error
            raise
        except RecursionError as error:
            names = ", ".join(str(file.path) for file in request.files)
            raise UserError(f"{names}: values are nested too deep; fetch the files again") from error
    log.info("%s: %s; %d pictures found", data.name, ", ".join(f"{k} {v}" for k, v in good.items()), pictures)


def _counted(data: DataSet, request: Request) -> Iterator[Entry]:
    """Passes entries on; where none is good, the files are not what they were taken for.

    Raises:
        UserError: naming the files and what is wrong with most of their records.
    """
    good, faults = 0, Counter[str]()
    for entry in data.read(request):
        if entry.skip is None:
            good += 1
        else:
            faults[entry.skip] += 1
        yield entry
    if not good:
        names = ", ".join(str(file.path) for file in request.files) or ", ".join(s.path for s in request.stores)
        fault = "; ".join(f"{count} x {reason}" for reason, count in faults.most_common(3)) or "no record found"
        raise UserError(f"{names}: nothing of {data.name} in it ({fault}); wanted: {_wanted(data) or data.title}")


def own_names(request: Request) -> Iterator[tuple[str, Place]]:
    """Every file of the stores that may be a picture, under its own name."""
    for number, store in enumerate(request.stores):
        for place in store.places(number):
            if is_picture_name(place.name) or "." not in place.name.rpartition("/")[2]:
                yield place.name, place
