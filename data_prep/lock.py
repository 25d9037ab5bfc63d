"""One process per folder: a lock that the system takes away when its holder ends, however it ends.

Of temporary folders likewise: the lock, and not the number of a process, tells those in use from those left behind, for
numbers are given again, and are others in a container that shares the folder.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from data_prep.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_YOUNG_SECONDS = 60.0


class FolderLock:
    """Holds a folder while it is open; a killed holder leaves a file behind, but no lock.

    Args:
        folder: The folder, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._handle: int | None = None

    def __enter__(self) -> "FolderLock":
        handle = self._locked()
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._handle is not None
        self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None

    def _locked(self) -> int:
        """The lock's file, held; opened again where its last holder removed it in between."""
        while True:
            handle = self._opened()
            self._hold(handle)
            if os.fstat(handle).st_nlink:
                return handle
            os.close(handle)

    def _opened(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write to the folder {self._path.parent}: {error.strerror}; give another one with --out"
            ) from error

    def _hold(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise UserError(
                f"{self._path.parent} is in use by process {pid}; wait for it, stop it with `kill {pid}`, "
                "or give another folder with --out"
            ) from error
        except OSError as error:  # some shared file systems know no locks
            logger.warning("%s cannot be locked (%s): start no other command there", self._path.parent, error.strerror)


def holder(folder: Path) -> int | None:
    """The process that works in a folder now, or None."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(handle, 32).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(handle)
    return None


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Marks a temporary folder as in use by this process, for `remove_left`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def remove_left(parent: Path, prefix: str) -> None:
    """Removes the folders that killed processes have left.

    Args:
        parent: Where they lie.
        prefix: Their names begin so, and those of no others; each is marked by `in_use` as soon as it is made.
    """
    for folder in parent.glob(f"{prefix}*"):
        try:
            if time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue  # perhaps not marked yet
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # another user's, or gone
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
