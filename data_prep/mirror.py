"""The index of shards behind a URL, copied to a local folder that stands for them; the shards stay where they are."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json, remove_asides, write_atomic, write_json
from data_prep.index import INDEX, SAMPLES, parse_index, samples_size
from data_prep.remote import RemoteFolder

REMOTE = "remote.json"
"""Says in a split's folder where its shards are, if not beside it."""


def mirror_index(remote: RemoteFolder, folder: Path) -> dict[str, Any]:
    """Copies index.json and samples.npy, where they are not there already; the index last.

    Args:
        remote: The folder of a split.
        folder: Where they go, with a file `remote.json` that names the URL; nobody else may be at work in it.

    Returns:
        The parsed index.

    Raises:
        UserError: there is no usable index, or it cannot be read.
    """
    data = remote.read_whole(INDEX)
    remove_asides(folder)
    return _copy(remote, data, folder)


def mirror_for_all(remote: RemoteFolder, parent: Path) -> Path:
    """Copies an index as `mirror_index` does, into a folder that any number of processes use at a time.

    Args:
        remote: The folder of a split.
        parent: Where the folders of all indexes are; another index, of the same URL too, has another folder.

    Raises:
        UserError: there is no usable index, or it cannot be read.
    """
    data = remote.read_whole(INDEX)
    folder = parent / sha256(remote.url.encode() + b"\0" + data).hexdigest()[:32]
    _copy(remote, data, folder)
    return folder


def _copy(remote: RemoteFolder, data: bytes, folder: Path) -> dict[str, Any]:
    index = parse_index(data, remote.url)
    size = samples_size(sum(shard["nsamples"] for shard in index["shardlist"]))
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_copy(folder, remote.url, data, size):
        if not _is_there(folder / INDEX, data):
            (folder / INDEX).unlink(missing_ok=True)
        write_json(folder / REMOTE, {"url": remote.url})  # from here on the folder is known as a copy
        remote.fetch(SAMPLES, folder / SAMPLES, size)
        write_atomic(folder / INDEX, data)
    return index


def _is_copy(folder: Path, url: str, data: bytes, size: int) -> bool:
    paths = folder / INDEX, folder / SAMPLES
    if remote_url(folder) != url or not all(path.is_file() for path in paths):
        return False
    return _is_there(paths[0], data) and paths[1].stat().st_size == size


def _is_there(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def remote_url(folder: Path) -> str | None:
    """Where the shards of a split's folder are, if not in it.

    Raises:
        UserError: the file that says so is broken.
    """
    try:
        stated = read_json(folder / REMOTE)
    except FileNotFoundError:
        return None
    if not isinstance(stated, dict) or not isinstance(stated.get("url"), str):
        raise UserError(f"{folder / REMOTE} must hold an object with a url; delete it and run the command again")
    return str(stated["url"])
