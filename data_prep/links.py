"""Shards that are there already, made the split of another folder: a link, or a copy of their index."""

import shutil
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.index import INDEX, load_index
from data_prep.mirror import mirror_index, remote_url
from data_prep.remote import RemoteFolder
from data_prep.targets import LocalTarget, Target


def link_shards(top: Target, name: str, folder: Path) -> dict[str, Any]:
    """Makes a split lead to a folder of shards; returns the account of its index.

    Args:
        top: The folder of all splits.
        name: Of the split in it.
        folder: Of its shards.

    Raises:
        UserError: a shard of the index is missing or of another size, or the split is a folder with something in it, or
            in an object store.
    """
    link = _local(top) / name
    index, _ = load_index(folder)
    for shard in index["shardlist"] if remote_url(folder) is None else ():
        path = folder / shard["url"]
        if not path.exists() or path.stat().st_size != shard["filesize"]:
            raise UserError(f"{path} is missing or not of the size in {folder / INDEX}; run `trimline index {folder}`")
    _unlink(_local(top), name)
    if remote_url(link) is not None:
        shutil.rmtree(link)  # the index of other shards, a copy
    elif link.exists():
        raise UserError(f"{link} holds other shards; remove it, or give another folder with --out DIR")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    account: dict[str, Any] = index["account"]
    return account


def _local(top: Target) -> Path:
    if not isinstance(top, LocalTarget):
        raise UserError(f"{top}: shards that are there already can only be named by a local folder; copy them")
    return top.folder


def _unlink(top: Path, name: str) -> None:
    """Removes links to shards on the way to a split: nothing of ours may be written into somebody's shards.

    Other links are the user's, who has put a folder on another disk; so is whatever leads to `top`.
    """
    path = top
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink() and ((path / INDEX).exists() or not path.exists()):
            path.unlink()


def mirror_shards(top: Target, name: str, remote: RemoteFolder) -> dict[str, Any]:
    """Copies the index of shards behind a URL; returns its account.

    Args:
        top: The folder of all splits.
        name: Of the split in it.
        remote: Where its shards lie.

    Raises:
        UserError: it cannot be read, or the split is a folder with other shards in it, or in an object store.
    """
    folder = _local(top) / name
    _unlink(_local(top), name)
    # A copy that was killed leaves hidden files at most before it says whose it is.
    if folder.exists() and remote_url(folder) is None and any(p.name[0] != "." for p in folder.iterdir()):
        raise UserError(f"{folder} holds other shards; remove it, or give another folder with --out DIR")
    account: dict[str, Any] = mirror_index(remote, folder)["account"]
    return account
