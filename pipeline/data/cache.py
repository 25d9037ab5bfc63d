"""A bounded cache of blocks on a local disk that any number of processes share and no crash can poison.

A block is a file of its own, written aside and renamed, so that it is whole or absent. Claims on blocks that are being
fetched, and the count of bytes, are guarded by byte-range locks (fcntl), which the kernel drops when a process dies.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from data_prep.errors import UserError

logger = logging.getLogger(__name__)

_LOCKS, _USAGE, _BLOCKS = "locks", "usage", "blocks"
_USAGE_LOCK = 0  # byte of the lock file; the others stand for blocks
_LEAVE = 0.9  # share of the limit that an eviction leaves, so that it is rare
_TOUCH_SECONDS = 60.0  # how exact the time of the last use is
_DEAD_SECONDS = 600.0  # age of a file aside whose writer must be gone
_PATIENCE = 10.0  # seconds for the count of bytes; one who holds it that long is stopped or on a broken disk


class Key(NamedTuple):
    """A block: which file (a digest of what identifies it), and which of its blocks."""

    file: str
    block: int

    @property
    def path(self) -> str:
        """Relative to the folder of blocks."""
        return f"{self.file[:2]}/{self.file}-{self.block:x}"


class BlockCache:
    """Blocks of files on disk. Picklable, and fit for a fork: open files belong to one process."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        """Makes the folder.

        Args:
            folder: On a local disk, for this cache alone.
            limit: Bytes that all blocks together may have.

        Raises:
            UserError: the folder cannot be made or written.
        """
        self.folder = Path(folder).expanduser()
        self.limit = limit
        self._process: _Process | None = None
        self._told_full = False
        try:
            (self.folder / _BLOCKS).mkdir(parents=True, exist_ok=True)
            self._here()
        except OSError as error:
            raise UserError(
                f"loader.cache_dir={folder} cannot be used ({error.strerror}); give a folder that you may write"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        """Open files and locks stay behind."""
        return self.__dict__ | {"_process": None}

    def _here(self) -> "_Process":
        """What belongs to this process: locks of fcntl are not inherited, and closing one file drops all on it."""
        if self._process is None or self._process.pid != os.getpid():
            who = os.getpid(), str(self.folder.resolve())
            self._process = _processes.get(who) or _processes.setdefault(who, _Process(self.folder))
        return self._process

    def read(self, key: Key, begin: int, end: int, size: int) -> bytes | None:
        """Bytes of a block, or None where it is not there; one of another size than it must have is removed.

        Args:
            key: The block.
            begin: First byte in it.
            end: Byte behind the last.
            size: Of the whole block.
        """
        path = self._path(key)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell_full(f"{path}: {error.strerror}")
            return None
        try:
            status = os.fstat(handle)
            data = os.pread(handle, end - begin, begin) if status.st_size == size else b""
            what = f"has {status.st_size} bytes where {size} are wanted"
        except OSError as error:
            data, what = b"", f"cannot be read ({error.strerror})"
        finally:
            os.close(handle)
        if len(data) == end - begin:
            if time.time() - status.st_mtime > _TOUCH_SECONDS:
                _touch(path)
            return data
        logger.warning("%s %s; it is fetched again", path, what)
        self.drop(key)
        return None

    def has(self, key: Key) -> bool:
        """Whether a block is there."""
        return os.path.exists(self._path(key))

    def drop(self, key: Key) -> None:
        """Removes a block that is not what it should be."""
        try:
            size = os.stat(self._path(key)).st_size
            os.unlink(self._path(key))
        except OSError:  # somebody else was faster, or has taken our rights away; then it is not there for us
            return
        self._count_out(size)

    def put(self, key: Key, data: bytes) -> None:
        """Keeps a block, and evicts what was least recently used where there is no room.

        A disk that takes no more, or a limit below one block, is no error: the block is not kept, and the first time
        this is told.
        """
        path, counted = self._path(key), False
        if os.path.exists(path):
            return
        try:
            counted = self._reserve(len(data))
            if counted:
                _write(path, data)
        except OSError as error:
            if counted:
                self._count_out(len(data))
            self._tell_full(error.strerror or str(error))

    def _count_out(self, size: int) -> None:
        """Counts bytes out; where the disk does not take even that, the next eviction finds them."""
        with contextlib.suppress(OSError):
            self._reserve(-size)

    def _tell_full(self, why: str) -> None:
        if not self._told_full:
            self._told_full = True
            logger.warning("blocks are not kept in loader.cache_dir=%s: %s", self.folder, why)

    @contextlib.contextmanager
    def claim(self, keys: Sequence[Key]) -> Iterator[list[Key]]:
        """Claims blocks that this process will fetch; gives those that no other process has claimed.

        In one process a block must not be claimed twice at a time.
        """
        handle = self._here().locks
        got = [key for key in keys if _try_lock(handle, _lock_byte(key))]
        try:
            yield got
        finally:
            for key in got:
                fcntl.lockf(handle, fcntl.LOCK_UN, 1, _lock_byte(key))

    def usage(self) -> int:
        """Bytes that the cache counts, blocks that are being written included."""
        return _number(os.pread(self._here().usage, 8, 0)) or 0

    def _reserve(self, size: int) -> bool:
        """Counts bytes in (or out) before they are written, so that the limit holds even if the writer is killed."""
        with self._counting() as counting:
            if not counting:
                self._tell_full("another process holds its lock")
                return False
            used = _number(os.pread(self._here().usage, 8, 0))
            if used is None:
                used = self._evict(self.limit)
            if used + size > self.limit:
                used = self._evict(int(self.limit * _LEAVE) - max(size, 0))
            if size > 0 and used + size > self.limit:
                self._tell_full(f"loader.cache_gib leaves no room for {size} bytes")
                size = 0
            os.pwrite(self._here().usage, max(0, used + size).to_bytes(8, "little"), 0)
            return size != 0

    @contextlib.contextmanager
    def _counting(self) -> Iterator[bool]:
        here = self._here()
        with here.mutex:  # locks of fcntl do not part threads
            end = time.monotonic() + (_PATIENCE if here.counts else 0.0)
            while not (got := _try_lock(here.locks, _USAGE_LOCK)) and time.monotonic() < end:
                time.sleep(0.002)
            here.counts = got  # else it is held by a process that is stopped: blocks are not kept until it goes on
            try:
                yield got
            finally:
                if got:
                    fcntl.lockf(here.locks, fcntl.LOCK_UN, 1, _USAGE_LOCK)

    def _evict(self, leave: int) -> int:
        """Removes blocks, those first that were not used for longest, until so many bytes are left; returns those."""
        found, total = list[tuple[float, int, str]](), 0
        for entry in _files(self.folder / _BLOCKS):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            dead = entry.name.endswith(".tmp") and time.time() - status.st_mtime > _DEAD_SECONDS
            found.append((float("-inf") if dead else status.st_mtime, status.st_size, entry.path))
            total += status.st_size
        for when, size, path in sorted(found):
            if total <= leave and when > float("-inf"):
                break
            if path.endswith(".tmp") and when > float("-inf"):
                continue  # somebody is writing it
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _path(self, key: Key) -> str:
        return f"{self.folder}/{_BLOCKS}/{key.path}"


class _Process:
    """Open files of one process, the same ones for all caches in one folder; they are never closed."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self.mutex = threading.Lock()
        self.counts = True
        self.locks = os.open(folder / _LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.usage = os.open(folder / _USAGE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


_processes: dict[tuple[int, str], _Process] = {}


def _number(data: bytes) -> int | None:
    return int.from_bytes(data, "little") if len(data) == 8 else None


def _try_lock(handle: int, byte: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock_byte(key: Key) -> int:
    """Two blocks may share one; then one waits for the other, no more."""
    digest = blake2b(f"{key.file}-{key.block}".encode(), digest_size=5).digest()
    return 1 + int.from_bytes(digest, "little")


def _touch(path: str) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _write(path: str, data: bytes) -> None:
    aside = f"{path}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Files in the folders of a folder; any of these may be removed meanwhile."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as inner:
        for entry in inner:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(entry) as entries:
                yield from entries
