"""Object stores for tests: memory with a limit, and memory that waits until it is told to go on."""

import errno
import threading
from typing import Any

import fsspec
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


for kind in (SmallStore, SlowStore):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def emptied(kind: type[MemoryFileSystem]) -> str:
    """The URL of a folder in the store, in which nothing is left of other tests."""
    kind.store.clear()
    kind.pseudo_dirs[:] = [""]
    kind.clear_instance_cache()
    return f"{kind.protocol}://bucket/run"
