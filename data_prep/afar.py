"""Shards in an object store, looked through as if they were here: each is fetched when it is wanted, and goes again."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.index import INDEX, SAMPLES
from data_prep.parts import PARTS
from data_prep.targets import Target, open_target

_STORE = ".store.json"
_SMALL = (INDEX, SAMPLES)


@contextlib.contextmanager
def standing_for(url: str) -> Iterator[Path]:
    """A temporary folder in place of one in a store, with its splits: their indexes, and an empty file for each tar.

    The empty files have the tars' names and sizes and take no space; `at_hand` fills them.

    Args:
        url: Of a split's folder, or of a folder of such.

    Raises:
        UserError: it cannot be listed.
    """
    if url.startswith(("http://", "https://")):
        raise UserError(
            f"{url}: over http nothing says which shards there are; give the URL of the store itself (s3://, gs://), "
            "or a local copy"
        )
    target = open_target(url)
    with tempfile.TemporaryDirectory(prefix="trimline-") as temporary:
        top = Path(temporary) / url.rstrip("/").rpartition("/")[2]
        top.mkdir()
        for name in ["", *sorted(target.folders())]:
            _place(target.child(name) if name else target, top / name)
        yield top


def _place(target: Target, folder: Path) -> None:
    sizes = target.sizes()
    tars = {name: size for name, size in sizes.items() if name.endswith(".tar")}
    if not tars and INDEX not in sizes:
        return
    folder.mkdir(exist_ok=True)
    write_json(folder / _STORE, {"url": str(target)})
    for name in sizes:
        if name in _SMALL or name.endswith("_stats.json"):
            target.fetch(name, folder / name)
    if target.sizes(PARTS):
        (folder / PARTS).mkdir()  # says that a job is not finished
    for name, size in tars.items():
        _empty(folder / name, size)


def _empty(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


@contextlib.contextmanager
def at_hand(path: Path) -> Iterator[None]:
    """Makes sure that a tar is there while it is read: one that stands for another is fetched, and emptied after it.

    Raises:
        FileNotFoundError: it is gone from the store.
        UserError: the disk is full, or the store refuses.
    """
    try:
        url = str(read_json(path.parent / _STORE)["url"])
    except FileNotFoundError:
        yield
        return
    size = path.stat().st_size
    open_target(url).fetch(path.name, path)
    try:
        yield
    finally:
        _empty(path, size)


def send_back(folder: Path, names: Sequence[str]) -> None:
    """Puts files of a folder that stands for one in a store there, in this order.

    Raises:
        UserError: the store refuses.
    """
    target = open_target(str(read_json(folder / _STORE)["url"]))
    for name in names:
        with target.write(name) as file:
            file.write((folder / name).read_bytes())
