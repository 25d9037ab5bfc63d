"""Files that are whole or absent: written aside, fsynced, renamed."""

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.direct import DirectFile
from data_prep.errors import DiskFull, NoAnswer, UserError

_BUFFER = 1 << 18  # small samples share a system call
_EAGER = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
# What a mounted network disk says while its server is away.
_NO_ANSWER = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN, errno.EHOSTUNREACH})


def is_disk_full(error: OSError) -> bool:
    """Whether an error says that the disk, the quota or the allowed file size is used up."""
    return error.errno in _DISK_FULL


def disk_full(path: Path, error: OSError) -> DiskFull:
    """The error for a disk that ran full while `path` was written."""
    return DiskFull(
        f"could not write {path}: {error.strerror}; free some space or give another output folder, "
        "then run the same command again: what is finished is kept"
    )


def is_unanswered(error: OSError) -> bool:
    """Whether an error of a disk may pass by itself, and says nothing about the file."""
    return error.errno in _NO_ANSWER


def is_refused(error: OSError) -> bool:
    """Whether a disk is mounted for reading only, or a file is somebody else's: neither passes by itself."""
    return error.errno in _REFUSED


def refused(path: Path, error: OSError) -> UserError:
    """The error for a place that may not be used so."""
    return UserError(
        f"{path} cannot be used ({error.strerror}); have it mounted for writing and owned by you, or give another "
        "folder, then run the same command again: what is finished is kept"
    )


def unanswered(path: Path, error: OSError) -> NoAnswer:
    """The error for a disk that did not answer when `path` was read or written."""
    return NoAnswer(
        f"{path} cannot be used now ({error.strerror}); check the disk and the network, then run the same command "
        "again: what is finished is kept"
    )


def _aside(path: Path) -> Path:
    """A fresh name beside `path`, on the same file system so that a rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def remove_asides(folder: Path) -> None:
    """Removes what killed writers left half-written in a folder, and in hidden folders in it."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*/.*.tmp")):
        path.unlink(missing_ok=True)


def fsync_dir(path: Path) -> None:
    """Makes the names inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _EagerFile(io.FileIO):
    """A file whose bytes set out for the disk while more are written, so that the last fsync has little to wait for."""

    _begun = _end = 0

    def write(self, data: Any, /) -> int:
        """Writes, and every few MiB asks Linux to begin with what is there."""
        written = super().write(data)
        self._end += written
        if self._end - self._begun >= _EAGER and _sync_file_range is not None:
            # Only a wish: what it returns does not matter, for fsync follows.
            _sync_file_range(self.fileno(), self._begun, self._end - self._begun, _SYNC_FILE_RANGE_WRITE)
            self._begun = self._end
        return written


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True, appended: bool = False) -> Iterator[BinaryIO]:
    """Opens a file aside that becomes `path` at success and vanishes at failure.

    Args:
        path: What it will be.
        durable: Whether to wait until it is on the disk; without it a power cut may leave it empty.
        appended: Whether it is large and written from its beginning to its end, so that it can go past the page cache.

    Raises:
        UserError: where the disk is full.
    """
    aside = _aside(path)
    try:
        with _opened(aside, durable, appended) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(aside, path)
        if durable:
            fsync_dir(path.parent)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path, error) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def _opened(path: Path, durable: bool, appended: bool) -> BinaryIO:
    if appended:
        return cast(BinaryIO, DirectFile(path))
    return io.BufferedWriter(_EagerFile(path, "wb") if durable else io.FileIO(path, "wb"), _BUFFER)


def read_file(path: str, most: int | None = None) -> bytes:
    """The bytes of a file, the first ones where there are more than `most`: in half the time that `open` takes.

    Raises:
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        size = size if most is None else min(size, most)
        data = os.read(handle, size)
        while len(data) < size and (more := os.read(handle, size - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file, or leaves what was there; text is UTF-8.

    Raises:
        UserError: where the disk is full.
    """
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, atomically and with a final newline; NaN and infinity are refused."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, mend: str = "restore it, or make it again with the command that made its folder") -> Any:
    """Reads a JSON file.

    Args:
        path: of the file.
        mend: what to do where it is damaged.

    Raises:
        FileNotFoundError: where there is none.
        UserError: where it does not hold JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} does not hold valid JSON ({error}); {mend}") from error


def read_described(path: Path) -> dict[str, Any]:
    """Reads what a folder of weights says of itself: its config.json.

    Raises:
        FileNotFoundError: where there is none.
        UserError: where it does not hold a JSON object.
    """
    described = read_json(path, mend="copy or export the folder again")
    if not isinstance(described, dict):
        raise UserError(f"{path} is no JSON object; copy or export the folder again")
    return described


def user_cache() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trimline"


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """Gives a fresh folder beside `final` that takes its place at success and vanishes at failure.

    An older `final` is moved aside just before the rename, and deleted after it.

    Raises:
        UserError: where the disk is full.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(final)
    aside.mkdir()
    try:
        yield aside
        _fsync_tree(aside)
        _take_place(aside, final)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(final, error) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all in it, or ends the removal that a killed process began.

    It is renamed first, so that nobody ever takes what is left of it for the folder. Of a link to a folder only the
    link is removed.
    """
    aside = folder.with_name(f".{folder.name}.removed")
    _remove(aside)
    if folder.is_symlink() or folder.exists():
        folder.rename(aside)
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_dir(Path(root))


def _take_place(aside: Path, final: Path) -> None:
    old = _aside(final)
    if final.exists():
        os.rename(final, old)
    os.rename(aside, final)
    fsync_dir(final.parent)
    shutil.rmtree(old, ignore_errors=True)
