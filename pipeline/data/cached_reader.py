"""Reads shards behind a URL through a cache of blocks on disk."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

from data_prep.remote import Piece, RemoteFolder
from pipeline.data.cache import BlockCache, Key
from pipeline.data.remote_reader import DirectReader, Run, runs
from pipeline.data.storage import Range, ShardList, file_digest

BLOCK = 1 << 20
"""Bytes of a block: some ten pictures of COCO's size, so that a first batch waits for little that it does not need."""

_DISTRUST_SECONDS = 0.05


class CachedReader(DirectReader):
    """Reads blocks of shards into a cache on disk, and samples from there."""

    def __init__(self, folder: RemoteFolder, shards: ShardList, cache: BlockCache) -> None:
        """Asks for nothing yet.

        Args:
            folder: where the shards lie.
            shards: the shards.
            cache: keeps their blocks.
        """
        super().__init__(folder, shards)
        self._cache = cache
        self._trusts_others = True  # to fetch what they have claimed
        self._odd: set[int] = set()  # shards of another size than they should have are not kept

    def _key(self, part: Range) -> Key:
        return Key(self._digest(part.shard), part.begin // BLOCK)

    def _digest(self, shard: int) -> str:
        return file_digest(self._folder.url, self._shards, shard, BLOCK)

    def _block(self, shard: int, number: int) -> Range:
        return Range(shard, number * BLOCK, min((number + 1) * BLOCK, self._shards.sizes[shard]))

    def _parts(self, ranges: Sequence[Range]) -> list[Range]:
        """The blocks that must be fetched for some ranges."""
        blocks = {block for where in ranges if where.shard not in self._odd for block in self._blocks_of(where)}
        return [block for block in blocks if not self._cache.has(self._key(block))]

    def _blocks_of(self, where: Range) -> list[Range]:
        numbers = range(where.begin // BLOCK, -(-where.end // BLOCK))
        return [self._block(where.shard, number) for number in numbers]

    def _fetch_run(self, run: Run) -> None:
        """Fetches neighbouring blocks that no other process is at; those are waited for by who needs them."""
        wanted = [(block, future) for block, future in run if future.set_running_or_notify_cancel()]
        failure: BaseException | None = None
        try:
            with self._cache.claim([self._key(block) for block, _ in wanted]) as got:
                mine = set(got)
                left = [b for b, _ in wanted if self._key(b) in mine and not self._cache.has(self._key(b))]
                for neighbours in runs(left, gap=0):
                    self._keep(neighbours)
        except BaseException as error:  # it belongs to those who wait, not to this thread
            failure = error
        for block, future in wanted:
            self._landed(block, future)
            if failure is None:
                future.set_result(b"")
            else:
                future.set_exception(failure)

    def _landed(self, block: Range, future: "Future[bytes]") -> None:
        work = self._work()
        with work.lock:
            if work.flying.get(block) is future:
                del work.flying[block]

    def _keep(self, blocks: Sequence[Range]) -> Piece:
        """Fetches neighbouring blocks into the cache."""
        shard, begin, end = blocks[0].shard, blocks[0].begin, blocks[-1].end
        piece = self._fetch(Range(shard, begin, end))
        if piece.total != self._shards.sizes[shard]:
            self._odd.add(shard)
            return piece
        for block in blocks:
            self._cache.put(self._key(block), piece.data[block.begin - begin : block.end - begin])
        return piece

    def read(self, where: Range) -> bytes:
        """See `Reader.read`."""
        self._discharge(where)
        return self._read(where)

    def _read(self, where: Range) -> bytes:
        if where.shard in self._odd:
            return self._fetch(where).data
        return b"".join(self._bytes(where, block) for block in self._blocks_of(where))

    def read_anew(self, where: Range) -> bytes:
        """See `Reader.read_anew`; the blocks of the cache are replaced."""
        for block in self._blocks_of(where):
            self._cache.drop(self._key(block))
        return self._read(where)

    def _bytes(self, where: Range, block: Range) -> bytes:
        """The bytes of a range that lie in a block."""
        begin, end = max(where.begin, block.begin) - block.begin, min(where.end, block.end) - block.begin
        return self._there(block, begin, end)

    def _there(self, block: Range, begin: int, end: int) -> bytes:
        """Bytes of a block: from the cache, or fetched into it by this process or another one."""
        work, key, size = self._work(), self._key(block), block.end - block.begin
        with work.lock:
            future = work.flying.get(block)
            own = future is None or future.cancel()
            if own:
                future = work.flying[block] = Future()
        assert future is not None
        waits = not own and not future.done()
        if not own:
            self._result(future, block)
        data = self._cache.read(key, begin, end, size)
        work.counts.hits += data is not None and not waits
        work.counts.misses += data is None or waits
        try:
            return data if data is not None else self._fetch_block(block, begin, end)
        finally:
            if own:
                self._landed(block, future)

    def _fetch_block(self, block: Range, begin: int, end: int) -> bytes:
        """Fetches a block, unless another process is at it: then waits for that, but not for ever."""
        key, size = self._key(block), block.end - block.begin
        # One that let us wait in vain is stopped or cut off, and has claimed more than this block.
        patience = self._folder.patience.stall_seconds if self._trusts_others else _DISTRUST_SECONDS
        begun, pause = time.monotonic(), 0.002
        while True:
            with self._cache.claim([key]) as got:
                data = self._cache.read(key, begin, end, size)
                if data is not None:
                    self._trusts_others = True
                    return data
                late = time.monotonic() > begun + patience
                if got or late:
                    self._trusts_others &= not late
                    return self._keep([block]).data[begin:end]
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
