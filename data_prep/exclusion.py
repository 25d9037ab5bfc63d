"""Lists of pictures to leave out, so that pre-training never sees what a model is tested on.

One entry a line: the SHA-256 of a picture's bytes (64 hexadecimal digits), `SOURCE:ID` (the `source` and `id` of a
sample's JSON, such as `coco:391895`), or an id alone, which holds for whatever data set is sharded. `coco:391895`
also leaves out samples of other data sets whose field `coco_id` says that they show this picture, as Visual Genome's
do, and `flickr:1000092795` those with that `flickr_id`. Lines that begin with `#` are comments.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import atomic_file, sha256_file
from data_prep.json_stream import loads
from data_prep.records import Record
from data_prep.tars import BadTar, group_samples, is_image, list_members, read_member

_CHECKSUM = re.compile(r"[0-9a-fA-F]{64}")
# The fields that say of which data set's picture a sample of another one is, and what an entry calls that data set.
_SHARED = {"coco_id": "coco", "flickr_id": "flickr"}


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """What the lists name; `digest` stands for their contents."""

    ids: frozenset[str]
    checksums: frozenset[bytes]
    digest: tuple[str, ...]

    def has_id(self, record: Record) -> bool:
        """Whether a sample is named by its id, or by another data set's id for the same picture."""
        if not self.ids:
            return False
        names = {record.id, f"{record.source}:{record.id}", *_shared_ids(record.fields)}
        return not names.isdisjoint(self.ids)

    def has_checksum(self, sha256: str) -> bool:
        """Whether a picture of this SHA-256 is named."""
        return bool(self.checksums) and bytes.fromhex(sha256) in self.checksums


def _shared_ids(fields: Mapping[str, Any]) -> list[str]:
    return [f"{source}:{fields[name]}" for name, source in _SHARED.items() if fields.get(name) is not None]


def read_exclusions(files: Sequence[str]) -> Exclusions:
    """Reads lists.

    Raises:
        UserError: where one is missing, is no text, or names nothing.
    """
    ids, checksums, digests = set[str](), set[bytes](), []
    for name in files:
        path = Path(name).expanduser()
        entries = list(_entries(path))
        if not entries:
            raise UserError(f"clean.exclude: {path} names nothing; wanted: one SHA-256 or id a line")
        for entry in entries:
            if _CHECKSUM.fullmatch(entry):
                checksums.add(bytes.fromhex(entry))
            else:
                ids.add(entry)
        digests.append(sha256_file(path))
    return Exclusions(ids=frozenset(ids), checksums=frozenset(checksums), digest=tuple(digests))


def _entries(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                entry = line.strip()
                if entry and not entry.startswith("#"):
                    yield entry
    except OSError as error:
        raise UserError(f"clean.exclude: cannot read {path}: {error.strerror}; give a list of ids") from error
    except UnicodeDecodeError as error:
        raise UserError(f"clean.exclude: {path} is not UTF-8 text; wanted: one SHA-256 or id a line") from error


def write_exclusions(folders: Sequence[Path], out: Path) -> dict[str, int]:
    """Lists every picture of shard folders, by id and by checksum.

    Args:
        folders: Each holds tars, with or without an index.
        out: The file to write.

    Returns:
        {"samples", "ids", "checksums"}.

    Raises:
        UserError: where a folder holds no tar or a broken one, or the disk is full.
    """
    counts = {"samples": 0, "ids": 0, "checksums": 0}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(b"# Written by `trimline exclusions`: SHA-256 of pictures, and SOURCE:ID\n")
        for folder in folders:
            for ids, checksums in _samples(folder):
                counts["samples"] += 1
                counts["ids"] += len(ids)
                counts["checksums"] += len(checksums)
                file.writelines(f"{line}\n".encode() for line in (*checksums, *ids))
    return counts


def _samples(folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The ids and the checksums of every sample of a folder."""
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(f"{folder} holds no .tar file; give the folder of a split")
    for path in tars:
        try:
            samples = list(group_samples(list_members(path)))
        except BadTar as error:
            raise UserError(f"{path}: {error}; run `trimline verify {folder}`") from error
        with open(path, "rb") as file:
            for _, members in samples:
                data = {member.extension: read_member(file, member) for member in members}
                pictures = [data[member.extension] for member in members if is_image(member)]
                checksums = [hashlib.sha256(picture).hexdigest() for picture in pictures]
                ids, originals = _from_json(data.get("json"))
                yield ids, checksums + originals


def _from_json(data: bytes | None) -> tuple[list[str], list[str]]:
    """SOURCE:ID, and the checksum that a picture had before it was re-encoded, where a sample's JSON has them."""
    value = loads(data or b"{}")
    if not isinstance(value, dict):
        return [], []  # `trimline verify` tells of it; the checksum is listed all the same
    ids = [f"{value['source']}:{value['id']}"] if {"source", "id"} <= value.keys() else []
    ids += [name for name in _shared_ids(value) if name not in ids]
    changed = value.get("originals")
    told = [one.get("sha256") for one in changed.values() if isinstance(one, dict)] if isinstance(changed, dict) else []
    originals = [text for text in told if isinstance(text, str) and _CHECKSUM.fullmatch(text)]
    return [line for line in ids if line.isprintable()], originals
