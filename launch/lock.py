"""One process per run folder: a lock that the system takes away when its holder ends, however it ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from data_prep.errors import UserError

LOCK = ".lock"


class RunLock:
    """Holds a run folder while it is open; a killed holder leaves no lock behind.

    Args:
        folder: The run folder, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._handle: int | None = None

    def __enter__(self) -> "RunLock":
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise UserError(
                f"{self._path.parent} is in use by process {pid}; wait for it, stop it with `kill {pid}`, "
                "or give another folder with --out"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None


def holder(folder: Path) -> int | None:
    """The process that works in a run folder now, or None."""
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
