"""Looks through a shard folder and names everything that is wrong with it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.images import BadImage, inspect_image
from data_prep.index import is_image, load_index
from data_prep.tars import BadTar, Member, group_samples, list_members, read_member


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: The file, and the sample's key after a colon where one sample is meant.
        what: What is wrong with it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.what}"


def verify_folder(folder: Path, *, decode: bool = True) -> list[Fault]:
    """Checks a shard folder against its index, and every sample against its own JSON.

    Args:
        folder: A split folder.
        decode: Whether to decode every picture; the slow part.

    Returns:
        The faults, in the order of the shards; empty where all is well.
    """
    try:
        index, rows = load_index(folder)
    except UserError as error:
        return [Fault(where=str(folder), what=str(error))]
    faults = list(_strays(folder, index))
    keys: dict[str, str] = {}
    start = 0
    for shard in index["shardlist"]:
        own = rows[start : start + shard["nsamples"]]
        start += shard["nsamples"]
        faults += _check_shard(folder / shard["url"], shard, own, keys, decode=decode)
    return faults


def _strays(folder: Path, index: dict[str, Any]) -> Iterator[Fault]:
    listed = {shard["url"] for shard in index["shardlist"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield Fault(where=path.name, what="is not in the index")


def _check_shard(
    path: Path, shard: dict[str, Any], rows: NDArray[np.int64], keys: dict[str, str], *, decode: bool
) -> Iterator[Fault]:
    name = path.name
    if not path.is_file():
        yield Fault(where=name, what="is missing")
        return
    size = path.stat().st_size
    if size != shard["filesize"]:
        yield Fault(where=name, what=f"has {size} bytes, the index says {shard['filesize']}")
    elif "sha256" in shard and sha256_file(path) != shard["sha256"]:
        yield Fault(where=name, what="has another checksum than the index says")
    try:
        samples = list(group_samples(list_members(path)))
    except BadTar as error:
        yield Fault(where=name, what=str(error))
        return
    spans = [(members[0].begin, members[-1].end) for _, members in samples if any(map(is_image, members))]
    if spans != [(int(begin), int(end)) for begin, end in rows[:, :2]]:
        yield Fault(where=name, what=f"has {len(spans)} samples at other places than samples.npy says")
    with open(path, "rb") as file:
        for key, members in samples:
            where = f"{name}:{key}"
            if key in keys:
                yield Fault(where=where, what=f"the key occurs in {keys[key]} too")
            keys[key] = name
            yield from (Fault(where=where, what=what) for what in _check_sample(members, file, decode=decode))


def _check_sample(members: list[Member], file: BinaryIO, *, decode: bool) -> Iterator[str]:
    data = {member.extension: read_member(file, member) for member in members}
    pictures = [data[member.extension] for member in members if is_image(member)]
    if not pictures:
        yield "has no picture"
    if decode:
        yield from _check_pictures(pictures)
    for wanted in ("txt", "json"):
        if wanted not in data:
            yield f"has no .{wanted} member"
    if "json" in data:
        yield from _check_json(data, pictures)


def _check_pictures(pictures: list[bytes]) -> Iterator[str]:
    for picture in pictures:
        try:
            inspect_image(picture)
        except BadImage as error:
            yield str(error)


def _check_json(data: dict[str, bytes], pictures: list[bytes]) -> Iterator[str]:
    try:
        value = json.loads(data["json"])
    except ValueError as error:
        yield f"its JSON cannot be read ({error})"
        return
    if not isinstance(value, dict):
        yield "its JSON is not an object"
        return
    # Other tools' shards may have neither checksum nor captions: only what is said is checked.
    if "sha256" in value and value["sha256"] != hashlib.sha256(b"".join(pictures)).hexdigest():
        yield "its picture has another checksum than its JSON says"
    captions = value.get("captions")
    if isinstance(captions, list) and "txt" in data:
        first = str(captions[0]) if captions else ""
        if data["txt"] != first.encode():
            yield "its .txt is not its first caption"
