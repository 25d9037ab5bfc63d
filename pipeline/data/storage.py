"""Where the bytes of shards come from: a local folder, or any URL that `data_prep.remote` reads."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data_prep.errors import UserError
from data_prep.patience import Patience
from pipeline.limits import above_zero

_OPEN_SHARDS = 128  # file handles a folder may hold in each process
_GIB, _MIB = 1 << 30, 1 << 20
_MOST = 1e6  # of any setting; a socket takes no time-out above 24 days


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How shards are read, above all such behind a URL.

    Attributes:
        cache_dir: folder on a local disk in which shards behind a URL are kept, in blocks; all processes and jobs of a
            user on a machine may share it. None reads each sample over the network, every epoch.
        cache_gib: what the cache may take, in GiB; give it room for two windows of every stream at least.
        checksums: compare every sample with its checksum in samples.npy, each time it is read.
        read_ahead_mib: samples of the next steps that a loader process asks for in advance, in MiB.
        silence_seconds: time without a byte after which a connection is given up for another one.
        give_up_seconds: time for one read with all its attempts, after which the run stops.
    """

    cache_dir: str | None = None
    cache_gib: float = 32.0
    checksums: bool = False
    read_ahead_mib: float = 64.0
    silence_seconds: float = 20.0
    give_up_seconds: float = 300.0

    def __post_init__(self) -> None:
        above_zero(self, "loader", "cache_gib", "silence_seconds", "give_up_seconds")
        if not self.read_ahead_mib >= 0:
            raise UserError(
                f"loader.read_ahead_mib={self.read_ahead_mib} must be at least 0, which reads nothing ahead"
            )
        for name in ("cache_gib", "read_ahead_mib", "silence_seconds", "give_up_seconds"):
            if getattr(self, name) > _MOST:
                raise UserError(f"loader.{name}={getattr(self, name)} must be at most {_MOST:,.0f}")
        if self.cache_dir is not None and "://" in self.cache_dir:
            raise UserError(f"loader.cache_dir={self.cache_dir} must be a folder on a local disk, not a URL")

    @property
    def patience(self) -> Patience:
        """The limits of time."""
        return Patience(stall_seconds=self.silence_seconds, give_up_seconds=self.give_up_seconds)

    @property
    def cache_bytes(self) -> int:
        """The limit of the cache."""
        return int(self.cache_gib * _GIB)

    @property
    def read_ahead_bytes(self) -> int:
        """The limit of what is asked for in advance."""
        return int(self.read_ahead_mib * _MIB)


STORAGE_KEYS = frozenset(field.name for field in fields(StorageConfig))
"""What decides how samples are read, and not which: no result depends on it."""


class Range(NamedTuple):
    """Bytes `begin` to `end` - 1 of the `shard`-th shard."""

    shard: int
    begin: int
    end: int


@dataclass(frozen=True)
class ShardList:
    """What an index says of the shards.

    Attributes:
        names: file names.
        sizes: bytes.
        sha256: of the files, or of their samples; None where the index has none.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    sha256: Sequence[str | None]


@dataclass
class ReadCounts:
    """What a reader has done in this process; nothing is counted of local files.

    Attributes:
        hits: parts of samples that were there when they were needed, from the cache or read ahead.
        misses: those that had to be waited for.
        fetched_bytes: over the network.
        failures: attempts that failed and were repeated.
    """

    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    failures: int = 0


class Reader(Protocol):
    """Reads bytes of shards. Picklable, and fit for a fork."""

    @property
    def counts(self) -> ReadCounts:
        """What was done in this process."""
        ...

    @property
    def ahead(self) -> int:
        """Bytes that were announced and are not read yet."""
        ...

    @property
    def reads_ahead(self) -> bool:
        """Whether it gains from announcements."""
        ...

    def expect(self, ranges: Sequence[Range]) -> None:
        """Announces what will be read soon."""
        ...

    def forget(self) -> None:
        """Takes back all announcements."""
        ...

    def read(self, where: Range) -> bytes:
        """The bytes of a range; fewer where the shard ends before.

        Raises:
            UserError: the shard cannot be read.
        """
        ...

    def read_anew(self, where: Range) -> bytes:
        """The same from where the shard is, for what was read before was wrong."""
        ...

    def close(self) -> None:
        """Lets go of files and threads of this process; they come back when they are needed."""
        ...


class LocalReader:
    """Shards of a folder on this machine, or one that it has mounted.

    Files are opened when they are first read, and read without moving a shared position.
    """

    reads_ahead = False
    ahead = 0
    counts = ReadCounts()

    def __init__(self, folder: Path, shards: ShardList) -> None:
        """Opens nothing yet.

        Args:
            folder: where the shards lie.
            shards: the shards.
        """
        self._handles: dict[int, int] = {}
        self._folder = folder
        self._shards = shards

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind."""
        return self.__dict__ | {"_handles": {}}

    def expect(self, ranges: Sequence[Range]) -> None:
        """Does nothing: the system reads ahead of local files."""

    def forget(self) -> None:
        """Does nothing, as `expect`."""

    def read(self, where: Range) -> bytes:
        """See `Reader.read`."""
        try:
            return os.pread(self._handle(where.shard), where.end - where.begin, where.begin)
        except OSError as error:
            raise self._unreadable(where.shard, error) from error

    def read_anew(self, where: Range) -> bytes:
        """See `Reader.read_anew`."""
        return self.read(where)

    def _unreadable(self, shard: int, error: OSError) -> UserError:
        path = self._folder / self._shards.names[shard]
        return UserError(f"cannot read shard {path} ({error.strerror}); fetch or write it again")

    def _handle(self, shard: int) -> int:
        handle = self._handles.get(shard)
        if handle is None:
            if len(self._handles) >= _OPEN_SHARDS:
                os.close(self._handles.pop(next(iter(self._handles))))
            path = self._folder / self._shards.names[shard]
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise self._unreadable(shard, error) from error
            self._handles[shard] = handle
        return handle

    def close(self) -> None:
        """See `Reader.close`."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()


def file_digest(url: str, shards: ShardList, shard: int, block: int) -> str:
    """Stands for a shard's content in a cache: where it is, what its index says of it, and how large blocks are."""
    told = f"{url}/{shards.names[shard]}\0{shards.sizes[shard]}\0{shards.sha256[shard]}\0{block}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
