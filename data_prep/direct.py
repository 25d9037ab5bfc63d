"""Large files that go past the page cache: shards are written once, and nobody reads them soon."""

import concurrent.futures as futures
import errno
import fcntl
import io
import mmap
import os
from pathlib import Path
from typing import Any

_CHUNK = 4 << 20
_BLOCK = 4096  # at least what any device wants places and lengths to be multiples of
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile(io.RawIOBase):
    """A new file that is written from its beginning to its end; the disk takes one chunk while the next is gathered.

    Without a copy into the page cache, and without waiting for the disk, writing costs the processor little. On a
    file system that knows no direct writes the chunks take the usual way.
    """

    def __init__(self, path: Path) -> None:
        """Makes the file.

        Raises:
            FileExistsError: there is one.
        """
        self._handle = _open_new(path)
        # Anonymous maps begin at a page, as direct writes want it.
        self._chunk, self._other = mmap.mmap(-1, _CHUNK), mmap.mmap(-1, _CHUNK)
        self._filled = 0
        self._thread = futures.ThreadPoolExecutor(1)
        self._writing: futures.Future[None] | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Of the opened file; what was written is there after `flush`."""
        return self._handle

    def write(self, data: Any, /) -> int:
        """Takes all of some bytes.

        Raises:
            OSError: the disk refused bytes of this call or of an earlier one.
        """
        size, end = len(data), self._filled + len(data)
        if end < _CHUNK:
            self._chunk[self._filled : end] = data
            self._filled = end
            return size
        rest = memoryview(data)
        while rest:
            part = rest[: _CHUNK - self._filled]
            self._chunk[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == _CHUNK:
                self._hand_over()
        return size

    def flush(self) -> None:
        """Writes what is left, through the page cache where it is no whole number of blocks; nothing may follow.

        Raises:
            OSError: the disk refused it.
        """
        self._wait()
        if self._filled:
            whole = self._filled - self._filled % _BLOCK
            _write(self._handle, memoryview(self._chunk)[:whole])
            _write_cached(self._handle, memoryview(self._chunk)[whole : self._filled])
            self._filled = 0

    def close(self) -> None:
        """Closes the file as it is: what was not flushed is lost."""
        if not self.closed:
            self._thread.shutdown(wait=True)
            os.close(self._handle)
            self._filled = 0
            super().close()

    def _hand_over(self) -> None:
        self._wait()
        self._writing = self._thread.submit(_write, self._handle, memoryview(self._chunk))
        self._chunk, self._other, self._filled = self._other, self._chunk, 0

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _open_new(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # some file systems refuse it only once the file is made
        return os.open(path, flags, 0o666)


def _write(handle: int, rest: memoryview) -> None:
    """Writes whole blocks from a place in the file that is a multiple of them."""
    while rest:
        try:
            written = os.write(handle, rest)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(handle, fcntl.F_GETFL) & _DIRECT:
                raise
            _write_cached(handle, rest)
            return
        rest = rest[written:]
        if written % _BLOCK:  # the disk is about to be full
            _write_cached(handle, rest)
            return


def _write_cached(handle: int, rest: memoryview) -> None:
    """Writes any number of bytes, through the page cache from now on."""
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_DIRECT)
    while rest:
        rest = rest[os.write(handle, rest) :]
