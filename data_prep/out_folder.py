"""Whether shards may be written to a folder: nobody else writes there, and nothing lies there that somebody wants."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.index import INDEX
from data_prep.job import PARTS, SHARD_NAME
from data_prep.lock import FolderLock
from data_prep.targets import LocalTarget, Target

_BEGUN = f"{PARTS}/begun"


@contextlib.contextmanager
def alone(target: Target) -> Iterator[None]:
    """Keeps other processes from writing into a folder; in an object store nothing can.

    Raises:
        UserError: where one does already, or the folder cannot be made.
    """
    if not isinstance(target, LocalTarget):
        yield
        return
    new = not target.folder.exists()
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target}: {error.strerror}; give another one") from error
    try:
        with FolderLock(target.folder):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # empty only where nothing could be written
                target.folder.rmdir()


def refuse_what_is_read(place: Target, reads: Sequence[str]) -> None:
    """Makes sure that shards do not replace, or lie among, what they are made of.

    Args:
        place: Where they shall go.
        reads: Folders and archives.

    Raises:
        UserError: one of these lies there or around it.
    """
    if isinstance(place, LocalTarget) and not place.folder.is_symlink():
        folder = place.folder.resolve()
        for path in map(Path, reads):
            if path.is_relative_to(folder) or folder.is_relative_to(path):
                raise UserError(f"{place}: shards cannot go where pictures are read ({path}); give another --out")


def refuse_others(place: Target, name: str) -> None:
    """Makes sure that shards replace none but those of the same name.

    Raises:
        UserError: there are others, or some that nobody knows.
    """
    if isinstance(place, LocalTarget) and place.folder.is_symlink():
        return  # the link goes, and what it leads to stays
    there = _name_of(place)
    if there not in (None, name):
        raise UserError(f"{place} holds other shards ({there}, not {name}); remove them, or give another --out")


def begin(place: Target, name: str) -> None:
    """Says whose shards lie in a folder from now on, until its index does."""
    with place.write(_BEGUN) as file:
        file.write(name.encode())


def _name_of(place: Target) -> str | None:
    """What the shards of a folder are called; None where there are none."""
    try:
        return str(json.loads(place.read(INDEX))["name"])
    except (ValueError, KeyError, TypeError):
        return "of unknown name"
    except (FileNotFoundError, NotADirectoryError):
        pass
    try:
        return place.read(_BEGUN).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return "of unknown name" if any(map(SHARD_NAME.fullmatch, place.sizes())) else None
