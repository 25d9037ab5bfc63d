"""Whether shards may be written to a folder: nobody else writes there, and nothing lies there that somebody wants."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.index import INDEX
from data_prep.job import SHARD_NAME
from data_prep.lock import FolderLock
from data_prep.parts import PARTS
from data_prep.targets import LocalTarget, Target

logger = logging.getLogger(__name__)

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


def settle_link(place: Target, name: str, fingerprint: str, *, remove: bool) -> None:
    """Sees to it that a split whose place is a link is not written into somebody's shards.

    A user's link to another disk stays, with what this job has written there.

    Args:
        place: Where shards shall go.
        name: What they will be called.
        fingerprint: Of the job.
        remove: Whether a link to other shards may go; what it leads to stays.

    Raises:
        UserError: it leads to other shards, or nowhere, and shall not be removed.
    """
    if not isinstance(place, LocalTarget) or not place.folder.is_symlink():
        return
    there = place.folder.exists()
    if there and _is_open_to(place, name, fingerprint):
        return
    what = f"{place} is a link to {'other shards' if there else 'what is not there'} ({place.folder.readlink()})"
    if not remove:
        raise UserError(f"{what}; remove the link, or these shards, or give another --out")
    logger.warning("%s: the link is removed, what it leads to stays", what)
    place.folder.unlink()


def _is_open_to(place: Target, name: str, fingerprint: str) -> bool:
    """Whether a folder has no shards, or has those of this very job, finished or not."""
    try:
        return bool(json.loads(place.read(INDEX))["fingerprint"] == fingerprint)
    except (ValueError, KeyError, TypeError):
        return False
    except (FileNotFoundError, NotADirectoryError):
        return _name_of(place) in (None, name)


def refuse_what_is_read(place: Target, reads: Sequence[str]) -> None:
    """Makes sure that shards do not replace, or lie among, what they are made of.

    Args:
        place: Where they shall go.
        reads: Folders and archives.

    Raises:
        UserError: one of these lies there or around it.
    """
    if isinstance(place, LocalTarget):
        folder = place.folder.resolve()
        for path in map(Path, reads):
            if path.is_relative_to(folder) or folder.is_relative_to(path):
                raise UserError(f"{place}: shards cannot go where pictures are read ({path}); give another --out")


def refuse_others(place: Target, name: str) -> None:
    """Makes sure that shards replace none but those of the same name.

    Raises:
        UserError: there are others, or some that nobody knows.
    """
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
