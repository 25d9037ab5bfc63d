"""Folders behind a URL, read by byte ranges: http(s) by urllib3, every other store by fsspec."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from data_prep.errors import UserError
from data_prep.files import atomic_file
from data_prep.http_ranges import INHERITED, HttpRanges
from data_prep.patience import Passing, Patience, patiently

logger = logging.getLogger(__name__)

_PIECE = 8 << 20
_LARGEST_INDEX = 64 << 20  # what the time limit of a file of unknown size is reckoned by
_PROGRAM_ERRORS = (TypeError, AttributeError, NameError)  # AssertionError is how aiohttp tells of a dropped connection
_TRIES = 5  # for errors that a store's library has of its own, for example missing credentials


class Piece(NamedTuple):
    """Bytes of a file, fewer than asked for only where it ends, and how many the file has."""

    data: bytes
    total: int


class Ranges(Protocol):
    """One way to read files of a remote folder.

    Attributes:
        from_start: Whether all bytes before a range must be read too.
    """

    from_start: bool

    def attempt(self, name: str, begin: int, end: int | None, size: int | None, deadline: float) -> tuple[bytes, int]:
        """One attempt at the bytes of a range, and at the file's size.

        Args:
            name: File in the folder.
            begin: First byte.
            end: Byte behind the last, or None for the whole file.
            size: Of the file, where it is known.
            deadline: When nobody waits any more, of `time.monotonic`.

        Raises:
            Passing: another attempt may succeed.
            UserError: none will.
        """
        ...

    def splits(self) -> list[str]:
        """Folders in it that have an index, and folders in these."""
        ...


def is_url(where: str | Path) -> bool:
    """Whether a place is named by a URL of something that is not a local file."""
    text = str(where)
    return "://" in text and not text.startswith(("file://", "local://"))


def local_path(where: str | Path) -> Path:
    """The path that a place names which is no URL, or one of a local file."""
    return Path(str(where).removeprefix("file://").removeprefix("local://")).expanduser()


class RemoteFolder:
    """A folder behind a URL. Picklable, and fit for a fork: connections belong to one process."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Checks the URL; nothing is asked yet.

        Raises:
            UserError: it cannot be one of a folder, or nothing here reads its kind.
        """
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        self._ranges = _open(self.url, self.patience)
        self._told: set[str] = set()

    def __str__(self) -> str:
        return self.url

    def read(
        self, name: str, begin: int, end: int, size: int, on_failure: Callable[[Passing], None] | None = None
    ) -> Piece:
        """Reads a range of a file; fewer bytes come only where the file is shorter than it should be.

        Args:
            name: The file.
            begin: First byte.
            end: Byte behind the last.
            size: What the file should have; another size is told once in the log.
            on_failure: Is told each failed attempt.

        Raises:
            UserError: it cannot be read: missing, refused, or not within the limits of time.
        """

        def attempt(deadline: float) -> Piece:
            data, total = self._ranges.attempt(name, begin, end, size, deadline)
            wanted = max(0, min(end, total) - begin)
            if len(data) != wanted:
                raise Passing(f"{len(data)} bytes came where {wanted} were asked for")
            return Piece(data, total)

        def cost() -> int:
            return size if self._ranges.from_start else end - begin

        piece = patiently(f"{self.url}/{name}", attempt, self.patience, cost, on_failure)
        if piece.total != size and name not in self._told:
            self._told.add(name)
            logger.warning("%s/%s has %d bytes where the index says %d", self.url, name, piece.total, size)
        return piece

    def read_whole(self, name: str) -> bytes:
        """Reads a whole file of unknown size.

        Raises:
            UserError: it cannot be read.
        """

        def attempt(deadline: float) -> bytes:
            data, total = self._ranges.attempt(name, 0, None, None, deadline)
            if len(data) != total:
                raise Passing(f"{len(data)} of {total} bytes came")
            return data

        return patiently(f"{self.url}/{name}", attempt, self.patience, lambda: _LARGEST_INDEX)

    def fetch(self, name: str, path: Path, size: int) -> None:
        """Copies a file of known size to a local one, which is whole or absent.

        Raises:
            UserError: it cannot be read, or has another size.
        """
        with atomic_file(path) as file:
            for begin in range(0, size, _PIECE):
                piece = self.read(name, begin, min(begin + _PIECE, size), size)
                if piece.total != size:
                    raise UserError(
                        f"{self.url}/{name} has {piece.total} bytes where {size} are wanted; make the index again with "
                        "`trimline index` where the shards were written, and copy it anew"
                    )
                file.write(piece.data)

    def splits(self) -> list[str]:
        """The folders inside that have an index.json, such as `train` or `coco/train`.

        Raises:
            UserError: the store cannot list.
        """
        return patiently(self.url, lambda deadline: self._ranges.splits(), self.patience, lambda: _PIECE)

    def child(self, name: str) -> "RemoteFolder":
        """The folder of this name inside."""
        return RemoteFolder(f"{self.url}/{name}", self.patience)


def _open(url: str, patience: Patience) -> Ranges:
    kind, shown = url.partition("://")[0], _without_secrets(url)
    if "::" in url or any(mark in url for mark in "?#"):
        raise UserError(f"{shown}: give the plain URL of a folder, such as s3://bucket/folder or https://host/folder")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{shown} is no address ({error}); give such as https://host/folder") from error
    if kind in ("http", "https"):
        if "@" in parts.netloc:
            # It would stand in run folders and logs, and is sent to nobody.
            raise UserError(f"{shown}: a name or password in the URL is not used; leave it out")
        return HttpRanges(url, patience.stall_seconds)
    if parts.password is not None:
        raise UserError(
            f"{shown}: a password in the URL would stand in run folders and logs; give it in the environment, as "
            f"fsspec reads it (FSSPEC_{kind.upper()}_PASSWORD for most stores)"
        )
    try:
        fsspec.get_filesystem_class(kind)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: nothing here can read {kind}:// ({error})") from error
    return _StoreRanges(url)


def _without_secrets(url: str) -> str:
    """A URL without names, passwords and signatures, to be shown."""
    return re.split(r"[?#]", re.sub(r"(?s)(?<=://).*@", "", url))[0]


class _StoreRanges:
    """Anything that fsspec knows."""

    from_start = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: tuple[int, Any, str] | None = None
        self._sizes: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def attempt(self, name: str, begin: int, end: int | None, size: int | None, deadline: float) -> tuple[bytes, int]:
        """See `Ranges.attempt`."""

        def read(fs: Any, root: str) -> tuple[bytes, int]:
            path = f"{root}/{name}"
            if end is None:
                data: bytes = fs.cat_file(path)
                return data, len(data)
            if name not in self._sizes:
                self._sizes[name] = int(fs.info(path)["size"])
            total = self._sizes[name]
            data = fs.cat_file(path, start=begin, end=min(end, total)) if begin < total else b""
            if begin + len(data) < min(end, total):
                self._sizes.pop(name, None)  # another file may have taken its place
            return data, total

        try:
            return self._asking(read, f"{self._url}/{name}")
        except (Passing, UserError):
            self._sizes.pop(name, None)
            raise

    def splits(self) -> list[str]:
        """See `Ranges.splits`."""

        def read(fs: Any, root: str) -> list[str]:
            fs.invalidate_cache()
            found = [path for pattern in ("*", "*/*") for path in fs.glob(f"{root}/{pattern}/index.json")]
            return sorted(path.rpartition("/")[0].removeprefix(f"{root}/") for path in found)

        return self._asking(read, self._url)

    def _asking(self, read: Callable[[Any, str], Any], what: str) -> Any:
        """Every store has errors of its own; sorts them into those that pass and those that do not."""
        try:
            return read(*self._fs())
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{what} is not there; check the address, or copy it there again") from error
        except PermissionError as error:
            raise UserError(f"{what} is refused ({error}); check your credentials") from error
        except (IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError) as error:
            raise UserError(f"{what} cannot be read ({error}); check the address") from error
        except _PROGRAM_ERRORS:
            raise
        except Exception as error:
            line = " ".join(str(error).split())
            tries = None if isinstance(error, OSError) else _TRIES
            raise Passing(f"{type(error).__name__}: {line}", tries=tries) from error

    def _fs(self) -> tuple[Any, str]:
        """The file system of this process; what a fork inherits would share its connections."""
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:
                INHERITED.append(self._opened)
            try:
                fs, root = url_to_fs(self._url, skip_instance_cache=True)
            # How these classes say that a part of the URL is missing.
            except (*_PROGRAM_ERRORS, AssertionError, ValueError) as error:
                line = " ".join(str(error).split())
                raise UserError(f"{self._url} cannot be opened ({line}); check the address") from error
            self._opened = os.getpid(), fs, root.rstrip("/")
        return self._opened[1:]
