"""Where shards go: a local folder, or any store that fsspec knows (s3://, gs://, memory://, ...)."""

import contextlib
import functools
import itertools
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs

from data_prep.errors import DiskFull, NoAnswer, UserError
from data_prep.files import atomic_file, disk_full, is_disk_full, is_unanswered, remove_asides, unanswered
from data_prep.redact import has_secret, redact_url

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_BATCH = 64  # files that a store is asked for at a time
_LOCAL = ("file://", "local://")
_PAUSES = 1.0, 5.0, 15.0  # seconds before who did not answer is asked again, on top of what a store's library tries
# What a store says that will be so the next time, too; a full one besides. All else may pass, but mistakes in code.
_FOR_GOOD = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)


class Target(Protocol):
    """A folder somewhere; names are relative to it, with slashes. Picklable.

    All methods raise `NoAnswer` where the store or the disk does not answer: nobody knows then what is there.
    """

    @property
    def only_here(self) -> bool:
        """Whether no other process sees what is written."""
        ...

    def child(self, name: str) -> "Target":
        """The folder of this name inside."""
        ...

    def prepare(self) -> None:
        """Makes the folder, and removes what a killed writer left half-written.

        Raises:
            UserError: where it cannot be made.
        """
        ...

    def write(
        self, name: str, *, durable: bool = True, appended: bool = False
    ) -> contextlib.AbstractContextManager[BinaryIO]:
        """Opens a file that becomes `name` at success and vanishes at failure.

        Args:
            name: What it will be called.
            durable: Whether it must outlive a power cut from then on.
            appended: Whether it is large and written from its beginning to its end; others can be sought in.

        Raises:
            UserError: where the disk is full or the store refuses.
        """
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of several files that are there, in order, a few in memory at a time."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The files of a folder (not of folders inside) and their bytes; empty where there is no such folder."""
        ...

    def folders(self) -> list[str]:
        """The names of the folders inside."""
        ...

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file to a local one.

        Raises:
            FileNotFoundError: there is none.
            UserError: the disk is full.
        """
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; one that is not there is no error."""
        ...

    def remove_folder(self, name: str) -> None:
        """Removes a folder with everything in it; one that is not there is no error."""
        ...


def open_target(where: str | Path) -> Target:
    """The target that a user names.

    Args:
        where: A path, or a URL such as `s3://bucket/folder`.

    Raises:
        UserError: for a kind of URL that cannot be used here, or one with a password or a token in it.
    """
    text = str(where)
    if has_secret(text):
        raise UserError(
            f"{redact_url(text)} has a password or a token in it, which indexes and logs would keep; leave it out, and "
            "give it to the store's library by its own variables or files, such as AWS_ACCESS_KEY_ID"
        )
    for prefix in _LOCAL:
        text = text.removeprefix(prefix)
    if "://" not in text:
        return LocalTarget(Path(text).expanduser())
    if "::" in text:
        raise UserError(f"{where}: chained URLs cannot be written; give a plain one, such as s3://bucket/folder")
    kind = text.partition("://")[0]
    try:
        fsspec.get_filesystem_class(kind)
    except (ValueError, ImportError) as error:
        raise UserError(f"{where}: nothing here can write to {kind}:// ({error})") from error
    return StoreTarget(text.rstrip("/"))


@dataclass(frozen=True)
class LocalTarget:
    """A folder of this machine, or one that it has mounted."""

    folder: Path
    only_here: bool = False

    def __str__(self) -> str:
        return str(self.folder)

    def child(self, name: str) -> "LocalTarget":
        """See `Target.child`."""
        return LocalTarget(self.folder / name)

    def prepare(self) -> None:
        """See `Target.prepare`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.folder}: {error.strerror}; give another one") from error
        remove_asides(self.folder)

    def write(
        self, name: str, *, durable: bool = True, appended: bool = False
    ) -> contextlib.AbstractContextManager[BinaryIO]:
        """See `Target.write`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return atomic_file(path, durable=durable, appended=appended)

    def read(self, name: str) -> bytes:
        """See `Target.read`."""
        return self._asking((self.folder / name).read_bytes)

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """See `Target.read_many`."""
        return map(self.read, names)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """See `Target.sizes`."""
        return self._asking(functools.partial(_local_sizes, self.folder / folder))

    def folders(self) -> list[str]:
        """See `Target.folders`."""
        return self._asking(functools.partial(_local_folders, self.folder))

    def _asking(self, ask: Callable[[], _T]) -> _T:
        return _patiently(functools.partial(self._once, ask))

    def _once(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except OSError as error:
            if is_unanswered(error):
                raise unanswered(self.folder, error) from error
            raise

    def fetch(self, name: str, path: Path) -> None:
        """See `Target.fetch`."""
        with open(self.folder / name, "rb") as source, atomic_file(path, durable=False) as file:
            shutil.copyfileobj(source, file)

    def remove(self, names: Iterable[str]) -> None:
        """See `Target.remove`."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """See `Target.remove_folder`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder / name)


@dataclass(frozen=True)
class StoreTarget:
    """A folder of an object store: whole files are uploaded, for such an upload is there at once or not at all."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def only_here(self) -> bool:
        """See `Target.only_here`."""
        return self.url.startswith("memory://")

    def child(self, name: str) -> "StoreTarget":
        """See `Target.child`."""
        return StoreTarget(f"{self.url}/{name}")

    def prepare(self) -> None:
        """See `Target.prepare`; a store has no folders and shows no half-written files."""

    @contextlib.contextmanager
    def write(self, name: str, *, durable: bool = True, appended: bool = False) -> Iterator[BinaryIO]:
        """See `Target.write`; the file is made in the temporary folder of this machine first.

        It has no name there, so that a killed process leaves nothing behind.
        """
        with tempfile.TemporaryFile() as file:
            try:
                yield cast(BinaryIO, file)
                file.flush()
            except OSError as error:
                if is_disk_full(error):
                    raise disk_full(Path(tempfile.gettempdir()) / name, error) from error
                raise
            try:
                self._asking(lambda fs, root: fs.put_file(f"/proc/self/fd/{file.fileno()}", f"{root}/{name}"))
            except FileNotFoundError as error:
                raise UserError(f"{self.url} is not there ({error}); make the bucket, or give another") from error

    def read(self, name: str) -> bytes:
        """See `Target.read`."""
        data: bytes = self._asking(lambda fs, root: fs.cat_file(f"{root}/{name}"))
        return data

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """See `Target.read_many`."""
        waiting = iter(names)
        while batch := list(itertools.islice(waiting, _BATCH)):
            yield from self._asking(functools.partial(_contents, batch))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """See `Target.sizes`."""
        return {_last(entry): entry["size"] for entry in self._listed(folder) if entry["type"] == "file"}

    def folders(self) -> list[str]:
        """See `Target.folders`."""
        return [_last(entry) for entry in self._listed() if entry["type"] == "directory"]

    def _listed(self, folder: str = "") -> list[dict[str, Any]]:
        def ask(fs: Any, root: str) -> list[dict[str, Any]]:
            fs.invalidate_cache()
            try:
                return list(fs.ls(f"{root}/{folder}".rstrip("/"), detail=True))
            except FileNotFoundError:
                return []

        return self._asking(ask)

    def fetch(self, name: str, path: Path) -> None:
        """See `Target.fetch`."""
        with atomic_file(path, durable=False) as file:
            self._asking(lambda fs, root: fs.get_file(f"{root}/{name}", file.name))

    def remove(self, names: Iterable[str]) -> None:
        """See `Target.remove`."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._asking(functools.partial(_remove_file, name))

    def remove_folder(self, name: str) -> None:
        """See `Target.remove_folder`."""
        with contextlib.suppress(FileNotFoundError):
            self._asking(lambda fs, root: fs.rm(f"{root}/{name}", recursive=True))

    def _asking(self, ask: Callable[[Any, str], _T]) -> _T:
        """What `ask` gets from the file system and the folder's path in it, if need be at a later attempt."""
        return _patiently(functools.partial(self._once, ask))

    def _once(self, ask: Callable[[Any, str], _T]) -> _T:
        """Every store has errors of its own; the user needs one line, and to know which of them may pass."""
        try:
            fs, root = url_to_fs(self.url)
            return ask(fs, root.rstrip("/"))
        except (UserError, FileNotFoundError, TypeError, NameError):
            raise  # not AssertionError, which aiohttp raises where a connection drops
        except Exception as error:
            full = isinstance(error, OSError) and is_disk_full(error)
            raise (DiskFull if full else UserError if isinstance(error, _FOR_GOOD) else NoAnswer)(
                f"{self.url} cannot be used ({type(error).__name__}: {error}); check the name and your credentials, "
                "then run the same command again: what is finished is kept"
            ) from error


def _patiently(ask: Callable[[], _T]) -> _T:
    """What `ask` gets, if need be at a later attempt."""
    for pause in _PAUSES:
        try:
            return ask()
        except NoAnswer as error:
            log.info("trying again in %g s: %s", pause, error)
        time.sleep(pause)
    return ask()


def _local_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def _local_folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _contents(names: Sequence[str], fs: Any, root: str) -> list[bytes]:
    return list(fs.cat_ranges([f"{root}/{name}" for name in names], None, None, on_error="raise"))


def _remove_file(name: str, fs: Any, root: str) -> None:
    fs.rm_file(f"{root}/{name}")


def _last(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def write_json_to(target: Target, name: str, value: Any) -> None:
    """Writes a value as JSON with a final newline; NaN and infinity are refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with target.write(name) as file:
        file.write(text.encode())
