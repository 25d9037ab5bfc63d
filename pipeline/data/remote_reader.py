"""Reads shards behind a URL: announced ranges by threads in the background, and kept until they are used."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from data_prep.errors import UserError
from data_prep.patience import Passing
from data_prep.remote import Piece, RemoteFolder
from pipeline.data.storage import Range, ReadCounts, ShardList

_THREADS = 16  # requests at a time: they wait for the network, not for a core
_LARGEST_REQUEST = 8 << 20
_LARGEST_GAP = 64 << 10  # bytes between two samples that are read in vain rather than asked for apart
_GRACE = 5.0  # seconds on top of a read's own limit


class Threads:
    """Calls in the background; a process need not wait for them when it ends."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Has a call carried out by the next thread that is free; it must raise nothing."""
        self._queue.put(call)
        if self._started < _THREADS:
            self._started += 1
            threading.Thread(target=_serve, args=(self._queue,), daemon=True).start()

    def stop(self) -> None:
        """Ends the threads once they have done what was submitted."""
        for _ in range(self._started):
            self._queue.put(None)


def _serve(queue: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (call := queue.get()) is not None:
        call()
        del call  # else a thread that waits would hold the reader, at whose end it shall end


Run = Sequence[tuple[Range, "Future[bytes]"]]
"""Neighbouring parts of a shard, each with the future of those who wait for it."""


@dataclass
class Work:
    """What belongs to one process: threads do not live on in a fork.

    Attributes:
        announced: ranges that will be read, and how often.
        flying: parts that are being fetched or will be.
    """

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: Threads = field(default_factory=Threads)
    announced: dict[Range, int] = field(default_factory=dict)
    flying: dict[Range, "Future[bytes]"] = field(default_factory=dict)
    ahead: int = 0
    counts: ReadCounts = field(default_factory=ReadCounts)


class DirectReader:
    """Reads exactly the announced samples, neighbours in one request, and keeps them in memory until they are used."""

    reads_ahead = True

    def __init__(self, folder: RemoteFolder, shards: ShardList) -> None:
        """Asks for nothing yet.

        Args:
            folder: where the shards lie.
            shards: the shards.
        """
        self._process: Work | None = None
        self._folder = folder
        self._shards = shards

    def __getstate__(self) -> dict[str, Any]:
        """Threads and what they fetched stay behind."""
        return self.__dict__ | {"_process": None}

    def _work(self) -> Work:
        if self._process is None or self._process.pid != os.getpid():
            self._process = Work()
        return self._process

    @property
    def counts(self) -> ReadCounts:
        """What was done in this process."""
        return self._work().counts

    @property
    def ahead(self) -> int:
        """See `Reader.ahead`."""
        return self._work().ahead

    def expect(self, ranges: Sequence[Range]) -> None:
        """See `Reader.expect`."""
        work = self._work()
        with work.lock:
            for where in ranges:
                work.announced[where] = work.announced.get(where, 0) + 1
                work.ahead += where.end - where.begin
        self._ask(self._parts(ranges))

    def _parts(self, ranges: Sequence[Range]) -> list[Range]:
        """What must be fetched for some ranges."""
        return list(ranges)

    def _ask(self, parts: Iterable[Range], gap: int = _LARGEST_GAP) -> None:
        """Has parts fetched in the background, as far as they are not yet."""
        work = self._work()
        with work.lock:
            new = {part: Future[bytes]() for part in sorted(parts) if part not in work.flying}
            work.flying.update(new)
        for run in runs(list(new), gap):
            work.threads.submit(partial(self._fetch_run, [(part, new[part]) for part in run]))

    def forget(self) -> None:
        """See `Reader.forget`."""
        work = self._work()
        with work.lock:
            work.announced.clear()
            work.ahead = 0
            for future in work.flying.values():
                future.cancel()
            work.flying.clear()

    def read(self, where: Range) -> bytes:
        """See `Reader.read`."""
        work = self._work()
        wanted_again = self._discharge(where)
        with work.lock:
            future = work.flying.get(where)
            own = future is None or future.cancel()
            if own or not wanted_again:
                work.flying.pop(where, None)
        if future is None or own:
            work.counts.misses += 1
            return self._fetch(where).data
        work.counts.hits += future.done()
        work.counts.misses += not future.done()
        return self._result(future, where)

    def read_anew(self, where: Range) -> bytes:
        """See `Reader.read_anew`."""
        return self._fetch(where).data

    def _discharge(self, where: Range) -> bool:
        """Takes back one announcement; says whether there are more: of a picture with several captions."""
        work = self._work()
        with work.lock:
            count = work.announced.pop(where, 0)
            if count:
                work.ahead -= where.end - where.begin
            if count > 1:
                work.announced[where] = count - 1
            return count > 1

    def _result(self, future: "Future[bytes]", part: Range) -> bytes:
        """What a thread fetched, or raised; with a bound on the time, whatever the thread does."""
        limit = self._folder.patience.give_up_seconds + _GRACE
        try:
            return future.result(timeout=limit)
        except TimeoutError as error:
            name = self._shards.names[part.shard]
            raise UserError(f"{self._folder}/{name} was not read within {limit:.0f} s; check the network") from error

    def _fetch(self, part: Range) -> Piece:
        """Fetches a part over the network."""
        work = self._work()

        def count(failure: Passing) -> None:
            with work.lock:  # many threads count
                work.counts.failures += 1

        shards = self._shards
        piece = self._folder.read(shards.names[part.shard], part.begin, part.end, shards.sizes[part.shard], count)
        with work.lock:
            work.counts.fetched_bytes += len(piece.data)
        return piece

    def _fetch_run(self, run: Run) -> None:
        """Fetches neighbouring parts of a shard at once, for those who wait for them."""
        wanted = [(part, future) for part, future in run if future.set_running_or_notify_cancel()]
        if not wanted:
            return
        begin, end = wanted[0][0].begin, max(part.end for part, _ in wanted)
        try:
            data = self._fetch(Range(wanted[0][0].shard, begin, end)).data
        except BaseException as error:  # it belongs to those who wait, not to this thread
            for _, future in wanted:
                future.set_exception(error)
            return
        for part, future in wanted:
            future.set_result(data[part.begin - begin : part.end - begin])

    def close(self) -> None:
        """See `Reader.close`."""
        if self._process is not None and self._process.pid == os.getpid():
            self.forget()
            self._process.threads.stop()
        self._process = None

    def __del__(self) -> None:
        self.close()


def runs(parts: Sequence[Range], gap: int = _LARGEST_GAP) -> Iterator[list[Range]]:
    """Cuts sorted parts into runs that are worth one request each."""
    run = list[Range]()
    end = 0
    for part in parts:
        joins = run and part.shard == run[0].shard and part.begin - end <= gap
        if run and not (joins and part.end - run[0].begin <= _LARGEST_REQUEST):
            yield run
            run = []
        end = max(end, part.end) if run else part.end
        run.append(part)
    if run:
        yield run
