"""The index of a shard folder: `index.json` (a wids index and checksums), `samples.npy` (byte offsets)."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.files import read_json, sha256_file
from data_prep.targets import LocalTarget, Target, write_json_to
from data_prep.tars import BadTar, Member, group_samples, list_members, read_member

COLUMNS = ("begin", "end", "captions", "statements")
INDEX = "index.json"
SAMPLES = "samples.npy"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One finished shard; `rows` has a (begin, end, captions, statements) for each sample, in order."""

    url: str
    filesize: int
    sha256: str
    rows: Sequence[Sequence[int]]


def write_index(
    folder: Path,
    shards: Sequence[ShardEntry],
    *,
    name: str,
    account: Mapping[str, Any],
    fingerprint: str | None = None,
) -> None:
    """Writes `samples.npy`, then `index.json`, whose presence says that the folder is complete.

    Raises:
        UserError: where the disk is full.
    """
    entries = [_listed(shard.url, len(shard.rows), shard.filesize, shard.sha256) for shard in shards]
    rows = (np.array(shard.rows, dtype=np.int64).reshape(-1, len(COLUMNS)) for shard in shards)
    target = LocalTarget(folder)
    write_samples(target, rows)
    write_shardlist(target, entries, name=name, account=account, fingerprint=fingerprint)


def _listed(url: str, samples: int, filesize: int, sha256: str) -> dict[str, Any]:
    return {"url": url, "nsamples": samples, "filesize": filesize, "sha256": sha256}


def write_samples(target: Target, rows: Iterable[NDArray[np.int64]]) -> None:
    """Writes `samples.npy` block by block, for all rows of a large split would not fit into memory.

    Args:
        target: The folder of the split.
        rows: Blocks of int64 (samples, 4), in the order of the shards.

    Raises:
        UserError: where the disk is full.
    """
    total = 0
    with target.write(SAMPLES) as file:
        file.write(_npy_header(total))
        for block in rows:
            total += len(block)
            file.write(np.ascontiguousarray(block, dtype="<i8").tobytes())
        file.seek(0)
        file.write(_npy_header(total))  # numpy pads it, so that any number of rows takes the same space


def _npy_header(rows: int) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (rows, len(COLUMNS))}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def samples_size(rows: int) -> int:
    """The bytes of a `samples.npy` with so many rows."""
    return len(_npy_header(rows)) + rows * len(COLUMNS) * 8


def write_shardlist(
    target: Target,
    shardlist: Sequence[Mapping[str, Any]],
    *,
    name: str,
    account: Mapping[str, Any],
    fingerprint: str | None = None,
) -> None:
    """Writes `index.json`, whose presence says that the folder is complete.

    Raises:
        UserError: where the disk is full.
    """
    index: dict[str, Any] = {
        "wids_version": 1,
        "name": name,
        "shardlist": list(shardlist),
        "samples": SAMPLES,
        "columns": list(COLUMNS),
        "account": dict(account),
    }
    if fingerprint is not None:
        index["fingerprint"] = fingerprint
    write_json_to(target, INDEX, index)


def load_index(folder: Path) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Reads a folder's index.

    Returns:
        The parsed `index.json`, and the rows of `samples.npy`: int64 (samples, 4), memory-mapped.

    Raises:
        UserError: where the folder has no index, or one that does not fit together.
    """
    try:
        index = read_json(folder / INDEX)
        rows = np.load(folder / SAMPLES, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} has no {Path(str(error.filename)).name}: it is incomplete or not a shard folder; "
            "run the command that writes it again, which goes on where it stopped"
        ) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{folder} has a broken index ({error}); delete the folder and write it again") from error
    total = sum(shard["nsamples"] for shard in index["shardlist"])
    if rows.dtype != np.int64 or rows.shape != (total, len(COLUMNS)):
        raise UserError(
            f"{folder / SAMPLES} holds {rows.dtype} {rows.shape}, but {INDEX} wants int64 "
            f"{(total, len(COLUMNS))}; delete the folder and write it again"
        )
    return index, rows


def index_folder(folder: Path) -> dict[str, Any]:
    """Makes the index of a folder of tars, ours or another tool's (img2dataset's, for example).

    Args:
        folder: Where the `*.tar` lie; they are taken in the order of their names.

    Returns:
        The account: samples asked and written, and counts of what was skipped.

    Raises:
        UserError: where there is no tar, or one that cannot be used.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(f"{folder} holds no .tar file; give the folder that holds the shards")
    shards, skipped, keys = [], Counter[str](), set[str]()
    for path in tars:
        try:
            shards.append(_scan(path, keys, skipped))
        except BadTar as error:
            raise UserError(f"{path}: {error}; remove this shard or fetch it again") from error
    written = sum(len(shard.rows) for shard in shards)
    account = {
        "asked": written + skipped.total(),
        "written": written,
        "skipped": dict(sorted(skipped.items())),
    }
    write_index(folder, shards, name=folder.name, account=account)
    return account


def _scan(path: Path, keys: set[str], skipped: Counter[str]) -> ShardEntry:
    rows = []
    with open(path, "rb") as file:
        for key, members in group_samples(list_members(path)):
            if key in keys:
                raise BadTar(f"key {key!r} occurs twice in the folder")
            keys.add(key)
            if not any(is_image(member) for member in members):
                skipped["no picture"] += 1
                continue
            captions, statements = _texts(members, file)
            rows.append((members[0].begin, members[-1].end, captions, statements))
    return ShardEntry(url=path.name, filesize=os.path.getsize(path), sha256=sha256_file(path), rows=rows)


def is_image(member: Member) -> bool:
    """Whether a member's name says that it is a picture of a sample."""
    return member.extension.rpartition(".")[2] in {"jpg", "jpeg", "png", "webp"}


def _texts(members: list[Member], file: BinaryIO) -> tuple[int, int]:
    """How many captions and statements a sample has, where other tools' fields count too."""
    by_extension = {member.extension: member for member in members}
    captions, statements = int("txt" in by_extension), 0
    if "json" in by_extension:
        try:
            value = json.loads(read_member(file, by_extension["json"]))
        except ValueError as error:
            raise BadTar(f"member {by_extension['json'].name!r} is not JSON ({error})") from error
        captions = len(value["captions"]) if "captions" in value else captions or int("caption" in value)
        statements = len(value.get("statements", ()))
    return captions, statements
