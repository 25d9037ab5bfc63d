"""What annotation files say about each sample, in a compact form on disk that any process can read by position."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.grouping import name_hash
from data_prep.pictures import Match, Pictures
from data_prep.records import Record, Skipped
from data_prep.stores import NoPicture

_PLAIN, _SUFFIX, _REPEATED = 0, 1, 2
_KEY_LENGTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One sample as a data set's annotation files describe it, before its picture is looked for.

    Attributes:
        split: The split it belongs to.
        id: Its name in the data set; the sample's key is made of it unless `key` says otherwise.
        pictures: Where the pictures may lie: file names in order of preference, by "" or by "left" and "right".
        key: What to make the key of, where `id` is not what one wants to see as a file name.
        skip: Why the sample cannot be given, where the annotations themselves are at fault.
        captions: As in `Record`; empty ones are left out.
        statements: As in `Record`.
        questions: As in `Record`.
        group: As in `Record`.
        fields: As in `Record`.
    """

    split: str
    id: str
    pictures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    key: str | None = None
    skip: str | None = None
    captions: Sequence[str] = ()
    statements: Sequence[Mapping[str, Any]] = ()
    questions: Sequence[Mapping[str, Any]] = ()
    group: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def key_of(name: str) -> str:
    """Turns a name into a key that every reader takes as a whole; two names never give the same by being cleaned."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
    if clean == name and 0 < len(name) <= _KEY_LENGTH:
        return name
    return with_suffix(clean or "sample", name)


def with_suffix(key: str, name: str) -> str:
    """A key that tells this name from others of the same key, of which there may be millions: 60 bits of its hash."""
    return f"{key[:_KEY_LENGTH]}-{name_hash(name) >> 4:015x}"


def one_line(text: Any) -> str:
    """A caption as it is told, without spaces around it; "" for what is no text."""
    return text.strip() if isinstance(text, str) else ""


def sentences(texts: Any) -> list[str]:
    """The captions among some values: a text, or a list of which those that are no text or empty are left out."""
    values = texts if isinstance(texts, list | tuple) else [texts]
    return [line for value in values if (line := one_line(value))]


def objects(values: Any) -> list[dict[str, Any]]:
    """The JSON objects of a list; none of what is no list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


class EntryWriter:
    """Writes the entries of one split: a JSON line each, the lines' ends, and what is special about their keys."""

    def __init__(self, folder: Path, split: str) -> None:
        """Opens `folder/<split>.jsonl`; 24 bytes an entry are held in memory."""
        self._base = folder / split
        self._file: BinaryIO = open(self._base.with_name(f"{split}.jsonl"), "wb")  # noqa: SIM115 - see close
        self._keys, self._ids, self._ends = array("Q"), array("Q"), array("Q")
        self._end = 0
        self.good = 0

    def add(self, entry: Entry) -> None:
        """Adds an entry; one that cannot be written as JSON becomes a skipped one."""
        key = key_of(entry.key or entry.id)
        if entry.skip is None:
            self.good += 1
        data = _line(key, entry)
        self._file.write(data)
        self._end += len(data)
        self._ends.append(self._end)
        self._keys.append(name_hash(key))
        self._ids.append(name_hash(entry.id.encode("utf-8", "replace").decode()))  # as it will be read

    def close(self) -> None:
        """Writes what stands beside the lines."""
        self._file.close()
        np.save(self._name("ends"), np.frombuffer(self._ends, np.uint64), allow_pickle=False)
        np.save(self._name("marks"), _marks(self._keys, self._ids), allow_pickle=False)

    def _name(self, what: str) -> Path:
        return self._base.with_name(f"{self._base.name}.{what}.npy")


def _line(key: str, entry: Entry) -> bytes:
    value = {
        name: content
        for name in ("id", "pictures", "skip", "captions", "statements", "questions", "group", "fields")
        if (content := getattr(entry, name))
    }
    try:
        text = json.dumps({"key": key} | plain(value), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        text = json.dumps({"key": key, "id": key, "skip": "malformed record"})
    # JSON may hold halves of characters, which no UTF-8 file can: they become question marks.
    return text.encode("utf-8", "replace") + b"\n"


def plain(value: Any) -> Any:
    """The same with null for what JSON cannot say: NaN and infinite numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _marks(keys: "array[int]", ids: "array[int]") -> NDArray[np.uint8]:
    """Finds keys that occur twice: the same id again is a repetition, another id gets a suffix."""
    key, name = np.frombuffer(keys, np.uint64), np.frombuffer(ids, np.uint64)
    marks = np.full(len(key), _PLAIN, np.uint8)
    order = np.lexsort((name, key))
    same_key = key[order][1:] == key[order][:-1]
    same_id = same_key & (name[order][1:] == name[order][:-1])
    for one in (order[1:], order[:-1]):
        marks[one[same_key & ~same_id]] = _SUFFIX
    marks[order[1:][same_id]] = _REPEATED
    return marks


def write_entries(folder: Path, entries: Iterable[Entry], splits: Sequence[str]) -> dict[str, int]:
    """Writes entries into an empty folder, split by split.

    Args:
        folder: Where they go.
        entries: Of these splits only.
        splits: All of them are written, those without an entry too.

    Returns:
        How many entries of each split are not skipped already.
    """
    writers = {split: EntryWriter(folder, split) for split in splits}
    try:
        for entry in entries:
            if entry.split in writers:
                writers[entry.split].add(entry)
    finally:
        for writer in writers.values():
            writer.close()
    return {split: writer.good for split, writer in writers.items()}


class EntrySplit:
    """A split of entries and pictures; picklable, for it holds no more than where they lie."""

    def __init__(self, folder: Path, name: str, *, source: str, match: Match, positions: Path | None = None) -> None:
        """Opens what `write_entries` wrote.

        Args:
            folder: With the entries, and the index of the pictures in `pictures/`.
            name: The split.
            source: The data set, as the records name it.
            match: How pictures are looked up.
            positions: A .npy file with the entries to take, where not all are wanted.
        """
        self._folder, self._name, self._source, self._match = folder, name, source, match
        self._positions = positions
        self._pictures = Pictures(folder / "pictures")
        self._open: tuple[NDArray[Any], ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is mapped into memory stays behind."""
        return self.__dict__ | {"_open": None}

    def _maps(self) -> tuple[NDArray[Any], ...]:
        if self._open is None:
            names = [self._folder / f"{self._name}.{what}.npy" for what in ("ends", "marks")]
            names += [self._positions] if self._positions else []
            self._open = tuple(np.load(name, mmap_mode="r", allow_pickle=False) for name in names)
        return self._open

    def __len__(self) -> int:
        """How many samples are asked for."""
        return len(self._maps()[-1])

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        """Reads the samples of the positions start to stop - 1."""
        return self.pick(range(start, stop))

    def pick(self, positions: Sequence[int]) -> Iterator[Record | Skipped]:
        """Reads the samples of these positions, one for each, in their order."""
        ends, marks, *chosen = self._maps()
        with open(self._folder / f"{self._name}.jsonl", "rb") as file:
            for position in positions:
                number = int(chosen[0][position]) if chosen else position
                file.seek(int(ends[number - 1]) if number else 0)
                yield self._record(json.loads(file.readline()), int(marks[number]))

    def _record(self, value: dict[str, Any], mark: int) -> Record | Skipped:
        key, name = value.pop("key"), value.get("id", "")
        if mark == _SUFFIX:
            key = with_suffix(key, name)
        reason = value.pop("skip", None) or ("repeated record" if mark == _REPEATED else None)
        if reason is not None:
            return Skipped(key=key, reason=reason)
        try:
            images = {side: self._pictures.read(names, self._match) for side, names in value.pop("pictures").items()}
        except NoPicture as error:
            return Skipped(key=key, reason=str(error))
        return Record(
            key=key, source=self._source, id=name, images=images, **{k: v for k, v in value.items() if k != "id"}
        )
