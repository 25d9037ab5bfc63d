"""The order of samples as arithmetic: global step -> samples, with no state but the step and no I/O.

The samples of global step s are a pure function of (seed, index digests, weights, streams C, window, global
batch B, s). Ranks, workers, prefetching and restarts do not enter: rank r takes the r-th part of the batch's
list.

An epoch of a source is its units (images or pairs) under a seeded permutation of its shards, begun at a
seeded place, cut into C equal contiguous ranges, each shuffled in windows. Every step takes B/C units from
each of the C streams. The units that fill no batch, fewer than B, are left out of the epoch; the seeded start
makes them others each epoch. With several sources each has epochs of its own, which turn over inside a batch;
then only the units that C equal ranges cannot hold, fewer than C, are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from pipeline.data.mix import Mix
from pipeline.data.seeds import draw, permutation

Unit = Literal["image", "pair"]


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How training visits its samples.

    Attributes:
        streams: C, how many places of an epoch are read side by side; must divide the global batch.
        window: units of a stream that are shuffled together.
        unit: "image" visits each image that has a text once an epoch, "pair" each (image, text) pair.
    """

    streams: int = 16
    window: int = 2048
    unit: Unit = "pair"

    def __post_init__(self) -> None:
        for name in ("streams", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.unit not in ("image", "pair"):
            raise UserError(f"unit={self.unit!r} must be image or pair")


class Pick(NamedTuple):
    """One sample of a batch: its row in the source's samples.npy, the source's epoch, which of its texts."""

    source: int
    row: int
    epoch: int
    text: int


class Slot(NamedTuple):
    """A place in the order: the `place`-th unit of this stream's range in this epoch of the source."""

    source: int
    stream: int
    epoch: int
    place: int


class Order(Protocol):
    """What a data set needs of an order.

    Attributes:
        leaves_out: Whether a bad sample is left out; else another one must stand in for it.
    """

    leaves_out: bool

    def slots(self, step: int, rank: int = 0, world_size: int = 1) -> list[Slot]:
        """This rank's part of the batch of global step `step`."""

    def pick(self, slot: Slot, attempt: int = 0) -> Pick | None:
        """The sample of a slot; for attempt > 0 its stand-in, or None where there is none (left)."""


class Units:
    """The units of one source, numbered shard by shard: what order needs to know of an index."""

    def __init__(
        self,
        digest: str,
        shard_rows: Sequence[int],
        texts: NDArray[np.int64],
        unit: Unit,
        sizes: NDArray[np.int64] | None = None,
    ) -> None:
        """Counts the units of every shard.

        Args:
            digest: sha256 of the index, so that other data has another order.
            shard_rows: how many rows each shard has; empty shards are fine.
            texts: how many texts each row has, shape (rows,); rows without a text have no unit.
            unit: "image" makes one unit of a row, "pair" one of each of its texts.
            sizes: how many units each shard has, where that is known; else all of `texts` is read to count them.
        """
        self.digest = digest
        self._texts = texts
        self._unit = unit
        self._row_starts = np.concatenate([[0], np.cumsum(np.asarray(shard_rows, dtype=np.int64))])
        if sizes is None:
            counts = [int(self._row_units(shard).sum()) for shard in range(len(shard_rows))]
            sizes = np.array(counts, dtype=np.int64)
        self.shard_sizes: NDArray[np.int64] = sizes
        self.total = int(self.shard_sizes.sum())
        self._ends: dict[int, NDArray[np.int64]] = {}

    def _row_units(self, shard: int) -> NDArray[np.int64]:
        texts = np.asarray(self._texts[self._row_starts[shard] : self._row_starts[shard + 1]])
        return texts if self._unit == "pair" else np.minimum(texts, 1)

    def find(self, shard: int, number: int) -> tuple[int, int]:
        """Row of the `number`-th unit of a shard, and which of its texts that is (0 for a whole image)."""
        ends = self._ends.get(shard)
        if ends is None:
            if len(self._ends) >= 256:  # bounds memory; windows touch few shards at a time
                self._ends.clear()
            ends = self._ends[shard] = self._counted(shard)
        local = int(ends.searchsorted(number, side="right"))
        before = int(ends[local - 1]) if local else 0
        return int(self._row_starts[shard]) + local, number - before

    def _counted(self, shard: int) -> NDArray[np.int64]:
        ends = np.cumsum(self._row_units(shard))
        found = int(ends[-1]) if len(ends) else 0
        if found != self.shard_sizes[shard]:
            raise UserError(
                f"index.json counts {self.shard_sizes[shard]} texts or samples with texts in shard number {shard}, "
                f"samples.npy {found}; make the index again with `trimline index`"
            )
        return ends

    def draw_text(self, row: int, seed: int, epoch: int) -> int:
        """The text that an image goes with in this epoch."""
        return draw(int(self._texts[row]), seed, self.digest, epoch, row, "text")


class _Layout:
    """A source's units end to end, the shards in a given order: position -> (shard, number in it)."""

    def __init__(self, shards: NDArray[np.int64], sizes: NDArray[np.int64], start: int) -> None:
        self._shards = shards
        self._begins = np.concatenate([[0], np.cumsum(sizes[shards])])
        self._start = start

    def at(self, position: int) -> tuple[int, int]:
        place = (self._start + position) % int(self._begins[-1])
        which = int(self._begins.searchsorted(place, side="right")) - 1
        return int(self._shards[which]), place - int(self._begins[which])


class _SourceEpochs:
    """One source's epochs: (epoch, stream, place) -> (row, text)."""

    def __init__(self, units: Units, config: OrderConfig, seed: int, multiple_of: int) -> None:
        self.units = units
        self._config = config
        self._seed = seed
        self.range_length = units.total // config.streams
        self.used = self.range_length // multiple_of * multiple_of  # of each range, in each epoch
        self._layouts: dict[int, _Layout] = {}
        self._windows: dict[int, tuple[int, int, NDArray[np.int64]]] = {}

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            if len(self._layouts) >= 3:  # streams of a mix are at most one epoch apart
                self._layouts.clear()
            key = (self._seed, self.units.digest, epoch)
            shards = permutation(len(self.units.shard_sizes), *key, "shards")
            self._layouts[epoch] = _Layout(shards, self.units.shard_sizes, draw(self.units.total, *key, "start"))
        return self._layouts[epoch]

    def _shuffled(self, epoch: int, stream: int, place: int) -> int:
        window, inside = divmod(place, self._config.window)
        known = self._windows.get(stream)
        if known is None or known[:2] != (epoch, window):
            size = min(self._config.window, self.range_length - window * self._config.window)
            order = permutation(size, self._seed, self.units.digest, epoch, stream, window, "window")
            known = self._windows[stream] = (epoch, window, order)
        return window * self._config.window + int(known[2][inside])

    def stride(self, slot: Slot) -> int:
        """Steps of this length visit every place of a range once before they meet the first again."""
        key = (self._seed, self.units.digest, slot.epoch, slot.stream, slot.place, "stride")
        found = 1 + draw(self.range_length, *key)
        while gcd(found, self.range_length) > 1:
            found += 1
        return found

    def at(self, epoch: int, stream: int, place: int) -> tuple[int, int]:
        place = self._shuffled(epoch, stream, place % self.range_length)
        shard, number = self._layout(epoch).at(stream * self.range_length + place)
        row, text = self.units.find(shard, number)
        return row, text if self._config.unit == "pair" else self.units.draw_text(row, self._seed, epoch)


class TrainOrder:
    """The endless order of training; see the head of this module."""

    leaves_out = False

    def __init__(
        self, sources: Sequence[tuple[Units, float]], config: OrderConfig, seed: int, global_batch: int
    ) -> None:
        """Checks that batches can be filled.

        Args:
            sources: units and weight of each source.
            config: streams, window, unit.
            seed: of the run.
            global_batch: B, samples of one step over all ranks.

        Raises:
            UserError: C does not divide B, or a source is too small to fill a batch.
        """
        if global_batch < 1 or global_batch % config.streams:
            raise UserError(_streams_message(global_batch, config.streams))
        self.global_batch = global_batch
        self._streams = config.streams
        self._rounds = global_batch // config.streams  # of one step: B/C
        self._mix = Mix([weight for _, weight in sources], config.streams, seed)
        whole_batches = self._rounds if len(sources) == 1 else 1
        self._epochs = [_SourceEpochs(units, config, seed, whole_batches) for units, _ in sources]
        for epochs in self._epochs:
            if not epochs.used:
                need = global_batch if len(sources) == 1 else config.streams
                raise UserError(
                    f"a source has {epochs.units.total} {config.unit}s to train on, but "
                    f"global_batch={global_batch} with streams={config.streams} needs at "
                    f"least {need}; use a smaller batch or more data"
                )

    @property
    def epoch_samples(self) -> list[int]:
        """Units of each source that one of its epochs visits."""
        return [epochs.used * self._streams for epochs in self._epochs]

    @property
    def left_out(self) -> list[int]:
        """Units of each source that one of its epochs leaves out, others each time."""
        return [epochs.units.total - epochs.used * self._streams for epochs in self._epochs]

    def slots(self, step: int, rank: int = 0, world_size: int = 1) -> list[Slot]:
        """This rank's part of the batch of a step; the parts of all ranks in turn are the batch."""
        if self.global_batch % world_size:
            raise UserError(f"global_batch={self.global_batch} must be a multiple of the {world_size} workers")
        part = self.global_batch // world_size
        return [self._slot(step, number) for number in range(rank * part, (rank + 1) * part)]

    def _slot(self, step: int, number: int) -> Slot:
        stream, within = divmod(number, self._rounds)
        source, before = self._mix.at(step * self._rounds + within, stream)
        epoch, place = divmod(before, self._epochs[source].used)
        return Slot(source, stream, epoch, place)

    def pick(self, slot: Slot, attempt: int = 0) -> Pick | None:
        """The sample of a slot; for a bad one another of its range, None when all were tried.

        Stand-ins are tried at steps of a length drawn by the slot. The next in line would be in the same batch, and
        where a shard is cut short it would stand for everything that was lost.
        """
        epochs = self._epochs[slot.source]
        if attempt >= epochs.range_length:
            return None
        place = slot.place + (attempt * epochs.stride(slot) if attempt else 0)
        row, text = epochs.at(slot.epoch, slot.stream, place)
        return Pick(slot.source, row, slot.epoch, text)


def _streams_message(global_batch: int, streams: int) -> str:
    fits = max((c for c in range(1, streams + 1) if global_batch > 0 and global_batch % c == 0), default=1)
    return f"global_batch={global_batch} must be a multiple of streams={streams}; try streams={fits}"


class EvalOrder:
    """Every unit of one source exactly once, in the order of the shards.

    All ranks have the same number of steps; in the last one the units that are left are shared out, so a rank
    may get fewer, or none.
    """

    leaves_out = True

    def __init__(
        self, units: Units, batch_size: int, world_size: int, limit: int | None = None, spread: bool = False
    ) -> None:
        """Counts the steps.

        Args:
            units: of the source.
            batch_size: units a step and rank.
            world_size: number of ranks.
            limit: only so many units, the first ones.
            spread: take them from all over the source instead.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit} must be at least 1, or absent for all samples")
        self._units = units
        self._layout = _Layout(np.arange(len(units.shard_sizes)), units.shard_sizes, 0)
        self.total = units.total if limit is None else min(limit, units.total)
        self._span = units.total if spread else self.total
        self._global_batch = batch_size * world_size
        self.steps = -(-self.total // self._global_batch)

    def slots(self, step: int, rank: int = 0, world_size: int = 1) -> list[Slot]:
        """This rank's part of a step: contiguous, and of equal size (but for one) on every rank."""
        begin = step * self._global_batch
        count = min(self._global_batch, self.total - begin)
        places = range(begin + count * rank // world_size, begin + count * (rank + 1) // world_size)
        return [Slot(0, 0, 0, place * self._span // self.total) for place in places]

    def pick(self, slot: Slot, attempt: int = 0) -> Pick | None:
        """The sample of a slot; nothing stands in for a bad one."""
        if attempt:
            return None
        row, text = self._units.find(*self._layout.at(slot.place))
        return Pick(0, row, 0, text)
