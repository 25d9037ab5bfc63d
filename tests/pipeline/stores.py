"""Object stores for tests: memory with a limit, that waits until it is told to go on, or that fails, and a folder."""

import errno
import threading
from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class _Memory(MemoryFileSystem):
    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix(f"{cls.protocol}://"))


class SmallStore(_Memory):
    """``small://``: refuses what is more than `room` bytes in all."""

    protocol = "small"
    store: dict[str, Any] = {}  # noqa: RUF012 (as fsspec's own)
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    room = 1 << 30

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        with open(lpath, "rb") as file:
            size = len(file.read())
        if sum(entry.size for entry in self.store.values()) + size > self.room:
            raise OSError(errno.EDQUOT, "the bucket's quota is used up")
        super().put_file(lpath, rpath, **more)


class SlowStore(_Memory):
    """``slow://``: an upload begins to count when `gate` is open."""

    protocol = "slow"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    gate = threading.Event()

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        assert self.gate.wait(60)
        super().put_file(lpath, rpath, **more)


class FailingStore(_Memory):
    """``failing://``: does not answer what `fails` names: ``remove``, ``read`` or ``upload``; or says that a ``mark``
    failed, which it took."""

    protocol = "failing"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    fails = ""
    failures = 1 << 30  # until it answers again
    where = ""  # what the paths have in common

    @classmethod
    def _may_fail(cls, what: str, path: str = "") -> None:
        if cls.fails == what and cls.failures and cls.where in path:
            cls.failures -= 1
            raise TimeoutError("no answer came")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        self._may_fail("read", path)
        data: bytes = super().cat_file(path, start, end, **more)
        return data

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self._may_fail("upload", rpath)
        super().put_file(lpath, rpath, **more)
        if self.fails == "mark" and rpath.endswith("COMPLETE"):
            raise TimeoutError("no answer came")

    def rm_file(self, path: str) -> None:
        self._may_fail("remove")
        super().rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._may_fail("remove")
        super().rm(path, recursive, maxdepth)


class SharedStore(LocalFileSystem):
    """``shared:///tmp/x``: a folder that several processes take for an object store."""

    protocol = "shared"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("shared://"))

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self.makedirs(self._parent(rpath), exist_ok=True)  # stores have no folders
        begun = f"{rpath}.{threading.get_ident()}.begun"
        super().put_file(lpath, begun, **more)
        self.mv(begun, rpath)  # nor half an object


class TroubledStore(SharedStore):
    """``troubled:///tmp/x``: as ``shared://``, but before a process uploads a file its `trouble` happens."""

    protocol = "troubled"
    trouble: Callable[[str], None] = staticmethod(lambda name: None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("troubled://"))

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self.trouble(rpath)
        super().put_file(lpath, rpath, **more)


for kind in (SmallStore, SlowStore, FailingStore, SharedStore, TroubledStore):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def emptied(kind: type[MemoryFileSystem]) -> str:
    """The URL of a folder in the store, in which nothing is left of other tests."""
    kind.store.clear()
    kind.pseudo_dirs[:] = [""]
    kind.clear_instance_cache()
    return f"{kind.protocol}://bucket/run"
