"""What img2dataset brought: a reason for each picture that it did not, and a place for each that it did."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.clean import Cleaner, Dropped
from data_prep.download.account import GOT, UNANSWERED, classify
from data_prep.download.asked import Asked, Wish
from data_prep.errors import UserError
from data_prep.files import atomic_file
from data_prep.images import BadImage
from data_prep.records import Record, Skipped
from data_prep.tars import BadTar, Member, list_members

PLACES = "places.npy"
_PLACE = np.dtype(
    [("row", "<i8"), ("pass", "<i2"), ("shard", "<i4"), ("data", "<i8"), ("size", "<i8"), ("high", "<u8"),
     ("low", "<u8"), ("first", "?")]
)  # fmt: skip


class Outcomes:
    """The latest reason of each picture that is asked for, by number; 2 bytes a picture."""

    def __init__(self, count: int) -> None:
        self._words = [UNANSWERED, GOT]
        self._codes = np.zeros(count, dtype=np.int16)

    def put(self, rows: NDArray[np.int64], reasons: list[str]) -> None:
        """Notes what became of some pictures; one that was got once stays so, whatever a later pass says."""
        codes = {}
        for reason in set(reasons):
            if reason not in self._words:
                self._words.append(reason)
            codes[reason] = self._words.index(reason)
        new = np.array([codes[reason] for reason in reasons], dtype=np.int16)
        self._codes[rows] = np.where(self._codes[rows] == self._words.index(GOT), self._codes[rows], new)

    def where(self, wanted: Mapping[str, bool]) -> NDArray[np.int64]:
        """The numbers of the pictures whose reason is wanted."""
        codes = [code for code, word in enumerate(self._words) if wanted[word]]
        return np.flatnonzero(np.isin(self._codes, codes)).astype(np.int64)

    @property
    def words(self) -> tuple[str, ...]:
        """The reasons that are known so far."""
        return tuple(self._words)

    def counts(self) -> dict[str, int]:
        """How many pictures have each reason, those without any left out."""
        numbers = np.bincount(self._codes, minlength=len(self._words))
        return {word: int(number) for word, number in zip(self._words, numbers, strict=True) if number}


def read_tables(raw: Path, outcomes: Outcomes) -> None:
    """Notes the outcomes of one pass; pictures that are in none of its tables were lost, and keep what they have."""
    for path in sorted(raw.glob("*.parquet")):
        table = pq.read_table(path, columns=["row", "status", "error_message"])
        states = zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True)
        outcomes.put(table["row"].to_numpy(), [classify(status, message) for status, message in states])


def write_places(folder: Path, raws: list[Path], got: NDArray[np.int64]) -> None:
    """Finds every picture that was got in the passes' tars, and notes it in `places.npy`.

    In the list's order: its tar and the place in it, 16 bytes of the SHA-256 that img2dataset computed, and whether it
    is the first with these bytes.

    Args:
        folder: Where `places.npy` goes.
        raws: The passes' folders.
        got: The numbers of the pictures that were got, ascending.

    Raises:
        UserError: a tar is broken, or the disk is full.
    """
    places = np.zeros(len(got), _PLACE)
    places["row"] = -1
    for number, raw in enumerate(raws):
        for part in _places_of(raw, number):
            places[np.searchsorted(got, part["row"])] = part
    if not np.array_equal(places["row"], got):
        raise RuntimeError(f"the tars below {folder} do not hold the {len(got)} pictures that their tables tell of")
    order = np.lexsort((places["low"], places["high"]))  # stable: among equal bytes, in the list's order
    high, low = places["high"][order], places["low"][order]
    places["first"][order] = np.r_[True, (high[1:] != high[:-1]) | (low[1:] != low[:-1])][: len(got)]
    with atomic_file(folder / PLACES) as file:
        np.save(file, places, allow_pickle=False)


def _places_of(raw: Path, number: int) -> Iterator[NDArray[np.void]]:
    for path in sorted(raw.glob("*.tar")):
        table = pq.read_table(path.with_suffix(".parquet"), columns=["row", "status", "key", "sha256"])
        table = table.filter(np.array(table["status"].to_pylist(), dtype=object) == "success")
        part = np.zeros(len(table), _PLACE)
        own = _members_of(path, table["key"].to_pylist())
        digests = [bytes.fromhex(text) for text in table["sha256"].to_pylist()]
        part["row"], part["pass"], part["shard"] = table["row"].to_numpy(), number, int(path.stem)
        part["data"], part["size"] = [member.data for member in own], [member.size for member in own]
        part["high"] = [int.from_bytes(digest[:8], "big") for digest in digests]
        part["low"] = [int.from_bytes(digest[8:16], "big") for digest in digests]
        yield part


def _members_of(path: Path, keys: list[str]) -> list[Member]:
    """The pictures of these keys in a tar; a power cut may leave one of the right size that holds zeros."""
    try:
        members = {member.key: member for member in list_members(path) if member.extension == "jpg"}
        lacking = sum(key not in members for key in keys)
        if lacking:
            raise BadTar(f"it lacks {lacking} of {len(keys)} pictures")
    except BadTar as error:
        path.with_name(f"{path.stem}_stats.json").unlink(missing_ok=True)
        raise UserError(f"{path} is broken ({error}); run the same command again: it is fetched anew") from error
    return [members[key] for key in keys]


class Fetched:
    """The pictures that were got, as a split for `data_prep.writer`; holds paths only, so it is cheap to pickle.

    Args:
        folder: With `asked/` and `places.npy`.
        raws: The passes' folders, as they were given to `write_places`.
        source: Name of the data set.
        cleaner: The writer's; what it drops is counted as that, and not as a duplicate.
    """

    def __init__(self, folder: Path, raws: list[Path], *, source: str, cleaner: Cleaner) -> None:
        self._folder, self._raws, self._source, self._cleaner = folder, raws, source, cleaner

    def __len__(self) -> int:
        """Pictures with a URL of their own that a server sent something for."""
        return len(self._opened()[0])

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        """See `data_prep.records.Split`."""
        places, asked = self._opened()
        tars = itertools.groupby(places[start:stop], key=lambda place: (int(place["pass"]), int(place["shard"])))
        for (number, shard), own in tars:
            with open(self._raws[number] / f"{shard:05d}.tar", "rb") as tar:
                for place in own:
                    tar.seek(place["data"])
                    wish = asked.wish(int(place["row"]))
                    yield self._record(wish, tar.read(place["size"]), bool(place["first"]))

    def _opened(self) -> tuple[NDArray[np.void], Asked]:
        return _open(self._folder, (self._folder / PLACES).stat().st_mtime_ns)

    def _record(self, wish: Wish, data: bytes, first: bool) -> Record | Skipped:
        key = f"{wish.line:09d}"
        if not first:
            try:
                # The same page of HTML, sent for many URLs, is no picture rather than a duplicate.
                self._cleaner.check(data, hashlib.sha256(data).hexdigest())
            except (BadImage, Dropped) as error:
                return Skipped(key=key, reason=str(error))
            return Skipped(key=key, reason="duplicate: same picture from another URL")
        return Record(
            key=key,
            source=self._source,
            id=str(wish.line),
            images={"": data},
            captions=wish.captions,
            fields={"url": wish.url},
        )


@lru_cache(maxsize=2)
def _open(folder: Path, _: int) -> tuple[NDArray[np.void], Asked]:
    """Maps the files once a process; the second argument tells new files from old ones."""
    places: NDArray[np.void] = np.load(folder / PLACES, mmap_mode="r", allow_pickle=False)
    return places, Asked(folder / "asked")
