"""Side records of a job that is under way: what a finished part of it wrote, so that it need not be done again."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.index import COLUMNS, rows_sha256, text_counts

PARTS = ".parts"
"""The folder that they lie in, beside the shards of a job that is not finished."""

NAMED_SKIPS = 100
_DIGEST_BYTES = 32


@dataclass(kw_only=True)
class Tally:
    """What was left out and changed on the way, counted by reason.

    Attributes:
        skipped: Samples, by reason.
        named: The first of them: (key, reason).
        captions: Captions that were changed or dropped, by reason.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    named: list[tuple[str, str]] = field(default_factory=list)
    captions: Counter[str] = field(default_factory=Counter)

    def skip(self, key: str, reason: str) -> None:
        """Counts a sample that is left out."""
        self.skipped[reason] += 1
        if len(self.named) < NAMED_SKIPS:
            self.named.append((key, reason))

    def add(self, other: "Tally") -> None:
        """Takes another one in, of samples that come later."""
        self.skipped += other.skipped
        self.captions += other.captions
        self.named += other.named[: NAMED_SKIPS - len(self.named)]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished shard; without a SHA-256 where none is wanted."""

    url: str
    nsamples: int
    filesize: int
    sha256: str | None

    def listed(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Its entry in the index.

        Args:
            rows: Of its samples, as in samples.npy.
        """
        entry = asdict(self)
        if self.sha256 is None:
            del entry["sha256"]
            entry["samples_sha256"] = rows_sha256(rows)
        return entry | text_counts(rows)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one piece of a job wrote.

    Attributes:
        fingerprint: Of the job.
        asked: Samples that it had to write.
        shards: Its shards, in order; none with no sample.
        tally: What it left out.
        keys: Of its samples, in order.
        rows: int64 (samples, 5), the rows of samples.npy.
    """

    fingerprint: str
    asked: int
    shards: tuple[Shard, ...]
    tally: Tally
    keys: tuple[str, ...]
    rows: NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """A checksum of the rest, a line of JSON, the rows."""
        head = {
            "fingerprint": self.fingerprint,
            "asked": self.asked,
            "shards": [asdict(shard) for shard in self.shards],
            "tally": vars(self.tally),
            "keys": self.keys,
        }
        body = json.dumps(head).encode() + b"\n" + self.rows.astype("<i8").tobytes()
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "Part | None":
        """Reads one back; None for anything else, such as what a power cut left."""
        body = data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            return None
        line, _, rest = body.partition(b"\n")
        try:
            head: dict[str, Any] = json.loads(line)
            shards = tuple(Shard(**shard) for shard in head["shards"])
            tally = Tally(
                skipped=Counter(head["tally"]["skipped"]),
                named=[(key, reason) for key, reason in head["tally"]["named"]],
                captions=Counter(head["tally"]["captions"]),
            )
            rows = np.frombuffer(rest, dtype="<i8").reshape(sum(s.nsamples for s in shards), len(COLUMNS))
            keys, fingerprint, asked = tuple(head["keys"]), head["fingerprint"], head["asked"]
        except (ValueError, KeyError, TypeError):
            return None  # of another version
        return cls(fingerprint=fingerprint, asked=asked, shards=shards, tally=tally, keys=keys, rows=rows)
