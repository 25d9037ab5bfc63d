"""Loaders of training and evaluation: DataLoaders over global steps, resumable by the first step."""

import logging
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_prep.errors import UserError
from pipeline.data.bad_share import check_bad_share
from pipeline.data.batch import ImageTextBatch
from pipeline.data.board import StallWatch
from pipeline.data.decode import Encoded, Pixels
from pipeline.data.order import EvalOrder, OrderConfig, Pick, TrainOrder, Unit, Units
from pipeline.data.parcels import Parcel, Slots
from pipeline.data.quarantine import Quarantine, kind_of
from pipeline.data.questions import question_units
from pipeline.data.sample import ASKED, TextKind
from pipeline.data.seeds import draw, generator
from pipeline.data.shards import ShardFolder
from pipeline.data.storage import STORAGE_KEYS, StorageConfig
from pipeline.data.stream import DrawSeed, StepDataset
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, eval_image, train_image
from pipeline.process import Process

logger = logging.getLogger(__name__)

Sources = Sequence[tuple[str | Path, float]]
_WARN_EVERY = 1000


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(TransformConfig, StorageConfig):
    """How shards become batches: size and augmentation as in TransformConfig, reading as in StorageConfig, and these.

    Attributes:
        streams: places of an epoch that are read side by side; must divide the global batch.
        window: samples of a stream that are shuffled together.
        workers: loader processes of each training process; 0 loads in the training process itself.
        prefetch: batches that each of them may be ahead.
        max_tokens: length of all texts in tokens, with begin and end; longer ones are cut, shorter ones
            padded.
        max_bad_share: share of bad samples (of those asked for, at least 1000) above which the run stops.
        stall_seconds: time without a batch after which the log says where each worker is, and again after as long;
            the run goes on. 0 for never.
    """

    streams: int = 16
    window: int = 2048
    workers: int = 1
    prefetch: int = 2
    max_tokens: int = 32
    max_bad_share: float = 0.01
    stall_seconds: float = 60.0

    def __post_init__(self) -> None:
        TransformConfig.__post_init__(self)
        StorageConfig.__post_init__(self)
        self.order("pair")
        if self.workers < 0:
            raise UserError(f"workers={self.workers} must be 0 or more")
        if self.prefetch < 1:
            raise UserError(f"prefetch={self.prefetch} must be at least 1")
        if self.stall_seconds < 0:
            raise UserError(f"stall_seconds={self.stall_seconds} must be 0 (never) or more")
        if self.max_tokens < 3:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 3: begin, one word, end")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share={self.max_bad_share} must be a share between 0 and 1")

    def order(self, unit: Unit) -> OrderConfig:
        """The part that the order is made of."""
        return OrderConfig(streams=self.streams, window=self.window, unit=unit)


READING_KEYS = STORAGE_KEYS | {"workers", "prefetch", "stall_seconds", "max_bad_share"}
"""What decides how samples are read, how far ahead, and when that is complained of: no result depends on it."""


@dataclass(frozen=True)
class _Failure:
    """A user's mistake found in a worker; an exception would reach the trainer as the text of a traceback."""

    message: str


class WorkerLost(RuntimeError):
    """A loader process ended in the middle of its work: the system killed it, or a library crashed in it."""


class _Carrier(Dataset[ImageTextBatch | Parcel | _Failure]):
    """What workers call; `slots` is set while an iterator starts them."""

    def __init__(self, inner: StepDataset) -> None:
        self.inner = inner
        self.slots: Slots | None = None

    def __getitem__(self, step: int) -> ImageTextBatch | Parcel | _Failure:
        try:
            if self.slots is None:
                return self.inner[step]
            return self.slots.pack(step, self.inner.make(step, self.slots.pixels(step)))
        except UserError as error:
            return _Failure(str(error))


class StepLoader(DataLoader[Any]):
    """Gives the batches of the global steps start to stop - 1, in order.

    Attributes:
        seen: samples given so far.
        bad: samples skipped so far, of this rank.
        reasons: the same, by the kind of reason.
    """

    def __init__(
        self,
        dataset: StepDataset,
        steps: range,
        largest: int,
        config: LoaderConfig,
        process: Process,
        sources: Sequence[str] = ("",),
        quarantine: Path | None = None,
    ) -> None:
        """Starts nothing yet; workers begin with the first batch.

        Args:
            dataset: of this rank.
            steps: the global steps to give, in order and without a gap.
            largest: samples of the largest batch.
            config: number of workers, and the share of bad samples that stops the run.
            process: of which rank.
            sources: names of the sources, for the quarantine list.
            quarantine: folder for lists of the samples that cannot be used; None for no list.
        """
        self._carrier = _Carrier(dataset)
        super().__init__(
            self._carrier,
            batch_size=None,
            sampler=steps,
            num_workers=config.workers,
            prefetch_factor=config.prefetch if config.workers else None,
            # Else every iterator would draw from the global generator, which the trainer restores.
            generator=torch.Generator(),
        )
        self.seen = 0
        self.bad = 0
        self.whole = True  # whether all of a split is given, once
        self.left_out = 0  # samples that were left out when the split was written
        self.split_samples: int | None = None  # how many that has, in an evaluation
        self.reasons: Counter[str] = Counter()
        self._steps = steps
        self._sources = sources
        self._quarantine = None if quarantine is None else Quarantine(quarantine, process.rank)
        self.max_bad_share = config.max_bad_share
        self._stall_seconds = config.stall_seconds
        self._dataset = dataset
        self._slot_count = min(config.workers * config.prefetch + 1, max(1, len(steps)))
        self._slot_shape = (largest, *dataset.shape)
        self._pinned = process.device.startswith("cuda")

    def __iter__(self) -> Iterator[ImageTextBatch]:  # type: ignore[override]
        """Batches in the order of the steps. Workers end with the iterator, whatever ends it.

        Raises:
            UserError: a shard cannot be read, or too many samples are bad.
            WorkerLost: a worker was killed, or crashed.
        """
        # Each iterator has its own: one that was left early may still have workers that write.
        slots = self._carrier.slots = Slots(self._slot_count, self._slot_shape) if self.num_workers else None
        values = super().__iter__()
        self._carrier.slots = None
        try:
            with StallWatch(self._stall_seconds, self._dataset.where) as watch:
                for step in self._steps:
                    watch.waits()
                    value = next(values)
                    watch.goes_on()
                    batch = self._opened(value, slots)
                    self._count(step, batch)
                    yield batch
        except RuntimeError as error:
            lost = self._lost(values)
            if lost is None:
                raise
            raise lost from error
        finally:
            if isinstance(values, _MultiProcessingDataLoaderIter):
                values._shutdown_workers()  # else they would live as long as an error's traceback, which holds them

    def _opened(self, value: ImageTextBatch | Parcel | _Failure, slots: Slots | None) -> ImageTextBatch:
        if isinstance(value, _Failure):
            raise UserError(value.message)
        if isinstance(value, Parcel):
            assert slots is not None
            return slots.unpack(value, pinned=self._pinned)
        return value.pin_memory() if self._pinned else value

    def _lost(self, values: Iterator[Any]) -> WorkerLost | None:
        """What to say of a worker that did not end by itself, if there is one."""
        workers = values._workers if isinstance(values, _MultiProcessingDataLoaderIter) else []
        for number, worker in enumerate(workers):
            if worker.exitcode:
                return WorkerLost(f"a loader process {_how_ended(worker.exitcode)}: {self._dataset.where()[number]}")
        return None

    def _count(self, step: int, batch: ImageTextBatch) -> None:
        self.seen += len(batch)
        for skip in batch.skipped:
            if self.bad % _WARN_EVERY == 0:
                logger.warning("skipped sample %s: %s (%d so far)", skip.name, skip.reason, self.bad + 1)
            self.bad += 1
            self.reasons[kind_of(skip.reason)] += 1
        if batch.skipped and self._quarantine is not None:
            self._quarantine.add(step, batch.skipped, self._sources)
        check_bad_share(
            self.seen, self.bad, self.max_bad_share, *(f"{at.name}: {at.reason}" for at in batch.skipped[-1:])
        )


def _how_ended(code: int) -> str:
    if code > 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        return f"was killed ({name})"
    return (
        f"was killed ({name}), as the system does where memory runs out (then set a smaller loader.workers or "
        "loader.prefetch)"
    )


def train_loader(
    sources: Sources,
    *,
    text: TextKind,
    unit: Unit,
    config: LoaderConfig,
    tokenizer: Tokenizer,
    seed: int,
    global_batch: int,
    process: Process,
    steps: int,
    start_step: int = 0,
    quarantine: Path | None = None,
) -> StepLoader:
    """The training samples of this rank, augmented, from global step `start_step` to `steps` - 1.

    Args:
        sources: split folders and the weight of each in the mix.
        text: what goes with an image, and with it what the label says (`ImageTextBatch`).
        unit: "image" visits each image once an epoch, with one of its texts drawn by seed; "pair" each text.
        config: size, augmentation, order, workers.
        tokenizer: of the texts.
        seed: of the run; order, texts and augmentation follow from it.
        global_batch: samples of a step over all ranks.
        process: which part is this rank's.
        steps: number of steps of the whole run, not of the rest.
        start_step: the first step to give; a resumed run's is the number of steps it has done.
        quarantine: folder for lists of the samples that cannot be used.

    Raises:
        UserError: folders cannot be read, sizes do not divide, or there is too little data.
    """
    folders = [ShardFolder(path, config) for path, _ in sources]
    units = [_units(folder, text, unit, process) for folder in folders]
    weighted = [(each, weight) for each, (_, weight) in zip(units, sources, strict=True)]
    for folder, each in zip(folders, units, strict=True):
        _check_not_empty(folder, each.total, text)
    order = TrainOrder(weighted, config.order(unit), seed, global_batch)
    order.slots(0, process.rank, process.world_size)  # the batch must divide: say so before any worker starts
    digests = [folder.digest for folder in folders]
    transform = partial(_augment, config, seed, digests) if config.augments else partial(_plain, config)
    draw_seed = partial(_draw_seed, seed, digests)
    dataset = _dataset(folders, order, transform, draw_seed, tokenizer, text, config, process, steps)
    names, part = [str(path) for path, _ in sources], global_batch // process.world_size
    todo = range(start_step, max(steps, start_step))
    return StepLoader(dataset, todo, part, config, process, names, quarantine)


def eval_loader(
    source: str | Path,
    *,
    text: TextKind,
    unit: Unit,
    config: LoaderConfig,
    tokenizer: Tokenizer,
    batch_size: int,
    process: Process,
    limit: int | None = None,
    spread: bool = False,
    quarantine: Path | None = None,
) -> StepLoader:
    """Every sample of a split exactly once over all ranks, in order, without augmentation.

    All ranks have the same number of batches; the last may be shorter on some ranks, or empty. A bad sample
    is left out and named in `skipped`.

    Args:
        source: the split folder.
        text: what goes with an image.
        unit: "pair" gives every text; "image" every image once, with its first text (`captions` holds all of
            them). `EveryImage` gives those without a text too.
        config: size, workers; augmentation is not used.
        tokenizer: of the texts.
        batch_size: samples a batch of one rank.
        process: which part is this rank's.
        limit: only so many samples, the first ones.
        spread: take them from all over the split instead: neighbours are alike.
        quarantine: folder for lists of the samples that cannot be used.

    Raises:
        UserError: the folder cannot be read or has no such texts.
    """
    folder = ShardFolder(source, config)
    units = _units(folder, text, unit, process)
    _check_not_empty(folder, units.total, text)
    order = EvalOrder(units, batch_size, process.world_size, limit, spread)
    draws, steps = _draws_nothing, order.steps
    dataset = _dataset([folder], order, partial(_plain, config), draws, tokenizer, text, config, process, steps)
    loader = StepLoader(dataset, range(steps), batch_size, config, process, [str(source)], quarantine)
    loader.whole, loader.split_samples, loader.left_out = order.total == units.total, units.total, folder.left_out
    return loader


def _units(folder: ShardFolder, text: TextKind, unit: Unit, process: Process) -> Units:
    return question_units(folder, unit, process) if text in ASKED else folder.units(text, unit)


def _check_not_empty(folder: ShardFolder, total: int, text: TextKind) -> None:
    if not total:
        said = f"{len(folder)} samples but no {text}" if len(folder) else "no samples"
        raise UserError(f"{folder.path} has {said}; choose data that has them")


def _augment(
    config: TransformConfig, seed: int, digests: list[str], data: Encoded, text: str, pick: Pick, number: int
) -> Pixels:
    """The second picture of a pair has draws of its own."""
    purpose = f"augment {number}" if number else "augment"
    rng = generator(seed, digests[pick.source], pick.epoch, pick.row, pick.text, purpose)
    return train_image(data, text, config, rng)


def _plain(config: TransformConfig, data: Encoded, text: str, pick: Pick, number: int) -> Pixels:
    return eval_image(data, config)


def _draw_seed(seed: int, digests: list[str], pick: Pick) -> int:
    return draw(1 << 63, seed, digests[pick.source], pick.epoch, pick.row, pick.text, "draws")


def _draws_nothing(pick: Pick) -> int:
    return 0


def _dataset(
    folders: Sequence[ShardFolder],
    order: TrainOrder | EvalOrder,
    transform: partial[Pixels],
    draw_seed: DrawSeed,
    tokenizer: Tokenizer,
    text: TextKind,
    config: LoaderConfig,
    process: Process,
    stop: int,
) -> StepDataset:
    return StepDataset(
        folders,
        order,
        transform,
        draw_seed,
        tokenizer,
        text=text,
        size=(config.height, config.width),
        max_tokens=config.max_tokens,
        rank=process.rank,
        world_size=process.world_size,
        workers=config.workers,
        stop=stop,
        read_ahead_bytes=config.read_ahead_bytes,
    )
