"""Global step -> this rank's batch: reads, decodes, augments and tokenises what the order names."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch, LoadWork, Skip
from pipeline.data.board import Activity, Note, WorkerBoard
from pipeline.data.decode import BadSample, Encoded, Pixels
from pipeline.data.order import Order, Pick, Slot
from pipeline.data.sample import ASKED, Sample, TextKind, all_said, pictures_of
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer

logger = logging.getLogger(__name__)

Transform = Callable[[Encoded, str, Pick, int], Pixels]
DrawSeed = Callable[[Pick], int]
_FURTHEST = 64  # steps that are announced in advance at most
# Samples that are read before they are decoded. Decoding drives all else out of the processor's caches, and with them
# the code that reads, which then takes three times as long.
_TOGETHER = 16
_LARGEST_KEPT = (32 << 20) - (64 << 10)  # bytes; of larger pieces glibc does not learn
_MOST_STAND_INS = 1000  # tried for one slot: where all are bad nothing good is left, and somebody waits for the batch


class Item(NamedTuple):
    """What a batch says of a sample; its pixels have their place. Made in a fifth of a frozen dataclass's time.

    Nothing here holds on to the encoded picture: a batch of them, made and thrown away, would have the kernel take
    back and clear megabytes of pages each time, which costs as much as a third of decoding.
    """

    text: str
    label: int
    sample_id: int
    draw_seed: int
    key: str
    group: str
    cluster: str
    captions: list[str]
    id: str
    told: Mapping[str, Any]


class _Found(NamedTuple):
    """A sample that was read, and its encoded picture, or those of a pair."""

    item: Item
    images: tuple[Encoded, ...]


@dataclass(kw_only=True)
class _Making:
    """A batch in the making.

    Attributes:
        step: its global step.
        worker: who makes it.
        skipped: samples that could not be used, so far.
        fetched: what the readers of this process had done before.
        read: seconds so far.
        decode: seconds so far.
    """

    step: int
    worker: int
    fetched: Counter[str]
    skipped: list[Skip] = field(default_factory=list)
    read: float = 0.0
    decode: float = 0.0


class StepDataset(Dataset[ImageTextBatch]):
    """`dataset[step]` is this rank's part of the batch of global step `step`, whoever asks and whenever.

    Give it to a DataLoader with `batch_size=None` and `sampler=range(start, stop)`: batches come in order for
    any number of workers, and a run resumes by its start.
    """

    def __init__(
        self,
        folders: Sequence[ShardFolder],
        order: Order,
        transform: Transform,
        draw_seed: DrawSeed,
        tokenizer: Tokenizer,
        *,
        text: TextKind,
        size: tuple[int, int],
        max_tokens: int,
        rank: int,
        world_size: int,
        workers: int,
        stop: int,
        read_ahead_bytes: int,
    ) -> None:
        """Puts the parts together; nothing is read yet.

        Args:
            folders: the sources that the order numbers.
            order: which samples a step has.
            transform: encoded image, all that is said of it (`all_said`), its place in the order, and its number in a
                pair (else 0) -> pixels.
            draw_seed: place in the order -> what random choices about the sample derive from, in [0, 2**63).
            tokenizer: of the texts.
            text: which of a sample's texts go with it.
            size: (height, width) that the transform gives.
            max_tokens: L.
            rank: of this process.
            world_size: number of processes.
            workers: how many processes make batches of it.
            stop: the step behind the last that anybody will ask for.
            read_ahead_bytes: samples of later steps that are announced to the folders at most.
        """
        self._folders = list(folders)
        self._order = order
        self._transform = transform
        self._draw_seed = draw_seed
        self._tokenizer = tokenizer.of_questions() if text in ASKED else tokenizer
        self._text: TextKind = text
        self._size = size
        self._max_tokens = max_tokens
        self._rank = rank
        self._world_size = world_size
        self._board = WorkerBoard(max(1, workers))
        self._stop = stop
        self._prepared = False
        self._read_ahead_bytes = read_ahead_bytes
        self._announced: dict[int, list[Pick | None]] = {}
        self._first_ids = np.cumsum([0, *(len(folder) for folder in folders)]).tolist()

    def __getitem__(self, step: int) -> ImageTextBatch:
        """Makes the batch of a step; see `make`."""
        return self.make(step)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what goes with a text: channels, height, width; of a pair 2 before them."""
        pictures = pictures_of(self._text)
        return (3, *self._size) if pictures == 1 else (pictures, 3, *self._size)

    def make(self, step: int, room: NDArray[np.uint8] | None = None) -> ImageTextBatch:
        """Makes the batch of a step.

        Args:
            step: global step.
            room: where its pixels go, at least B times `shape`; None for new memory.

        Raises:
            UserError: no sample of a slot's range can be read, or a shard cannot be opened.
        """
        if not self._prepared:
            self._prepared = True
            cv2.setNumThreads(0)  # its threads would fight with the trainer's for the cores, and die in a fork
            _keep_freed_memory()
        info = get_worker_info()
        making = _Making(step=step, worker=0 if info is None else info.id, fetched=self._fetched())
        self._announce(step)
        slots = self._order.slots(step, self._rank, self._world_size)
        picks = self._announced.pop(step, None) or [self._order.pick(slot) for slot in slots]
        pixels = np.empty((len(slots), *self.shape), dtype=np.uint8) if room is None else room
        items: list[Item] = []
        for begin in range(0, len(slots), _TOGETHER):
            part = slice(begin, begin + _TOGETHER)
            read = [self._read(pick, making) for pick in picks[part]]
            for slot, pick, found in zip(slots[part], picks[part], read, strict=True):
                item = self._item(slot, pick, found, making, pixels[len(items)])
                if item is not None:
                    items.append(item)
        batch = self._collate(items, pixels[: len(items)], making)
        self._board.write(making.worker, Activity.WAITING, step)
        return batch

    def _fetched(self) -> Counter[str]:
        """What the readers have done in this process so far."""
        total: Counter[str] = Counter()
        for folder in self._folders:
            total.update(vars(folder.reader.counts))
        return total

    def where(self) -> list[str]:
        """A line for each worker: what it is at, and for how long."""
        return [f"worker {number} {self._told(self._board.read(number))}" for number in range(self._board.workers)]

    def _told(self, note: Note) -> str:
        if note.seconds is None:
            return "has not begun"
        name = f"{self._folders[note.source].place(note.row)} of {self._folders[note.source].path}"
        doing = {
            Activity.WAITING: f"is done with step {note.step}, waiting",
            Activity.READING: f"is reading {name}, step {note.step},",
            Activity.DECODING: f"is decoding {name}, step {note.step},",
            Activity.TOKENISING: f"is tokenising the texts of step {note.step},",
        }
        return f"{doing[note.activity]} for {note.seconds:.0f} s"

    def _announce(self, step: int) -> None:
        """Tells the folders what this step and the next ones of this worker will read, as far as the limit allows."""
        if not self._read_ahead_bytes or not any(folder.reader.reads_ahead for folder in self._folders):
            return
        if step not in self._announced:  # the first step, or a jump
            self._announced.clear()
            for folder in self._folders:
                folder.reader.forget()
        worker = get_worker_info()
        stride = 1 if worker is None else worker.num_workers
        for later in range(step, min(self._stop, step + _FURTHEST * stride), stride):
            if later in self._announced:
                continue
            if later > step and sum(folder.reader.ahead for folder in self._folders) >= self._read_ahead_bytes:
                break
            slots = self._order.slots(later, self._rank, self._world_size)
            picks = self._announced[later] = [self._order.pick(slot) for slot in slots]
            for number, folder in enumerate(self._folders):
                folder.expect([pick.row for pick in picks if pick is not None and pick.source == number])

    def _read(self, pick: Pick | None, making: _Making) -> _Found | Skip | None:
        """A sample, not decoded yet; or why it cannot be used."""
        if pick is None:
            return None
        folder, key, begin = self._folders[pick.source], None, time.perf_counter()
        self._board.write(making.worker, Activity.READING, making.step, pick.source, pick.row)
        try:
            sample = folder.read(pick.row)
            key = sample.key
            return _Found(self._described(sample, pick), sample.pictures(self._text))
        except BadSample as error:
            return Skip(*folder.shard_of(pick.row), key, str(error), pick.source)
        finally:
            making.read += time.perf_counter() - begin

    def _described(self, sample: Sample, pick: Pick) -> Item:
        try:
            text, label, told = sample.text(self._text, pick.text)
        except (KeyError, IndexError, TypeError) as error:
            raise BadSample(f"has not the text that the index promises: {self._text}[{pick.text}]") from error
        return Item(
            text=text,
            label=label,
            sample_id=self._first_ids[pick.source] + pick.row,
            draw_seed=self._draw_seed(pick),
            key=sample.key,
            group=sample.group,
            cluster=sample.cluster,
            captions=sample.captions,
            id=sample.id,
            told=told,
        )

    def _item(
        self, slot: Slot, pick: Pick | None, found: _Found | Skip | None, making: _Making, planes: Pixels
    ) -> Item | None:
        """The sample of a slot or, where it is bad, its first good stand-in; None where there may be none.

        Its pixels go into `planes`, of `shape`.
        """
        attempt = 0
        while pick is not None:
            done = self._decoded(found, pick, making, planes) if isinstance(found, _Found) else found
            if isinstance(done, Item):
                return done
            assert done is not None
            making.skipped.append(done)
            attempt += 1
            pick = self._order.pick(slot, attempt) if attempt < _MOST_STAND_INS else None
            found = self._read(pick, making)
        if not self._order.leaves_out:
            bad = making.skipped[-1]
            raise UserError(
                f"none of {attempt} samples around {bad.name} of {self._folders[bad.source].path} can be used "
                f"({bad.reason}); check the shards with `trimline verify`"
            )
        return None

    def _decoded(self, found: _Found, pick: Pick, making: _Making, planes: Pixels) -> Item | Skip:
        begin = time.perf_counter()
        self._board.write(making.worker, Activity.DECODING, making.step, pick.source, pick.row)
        try:
            said = all_said(self._text, found.item.text, found.item.told)
            for number, image in enumerate(found.images):
                pixels = self._transform(image, said, pick, number)
                assert pixels.shape == (*self._size, 3)  # else OpenCV would write elsewhere, and say nothing
                room = planes if planes.ndim == 3 else planes[number]
                cv2.split(pixels, list(room))  # eight times as fast as NumPy's transpose
            return found.item
        except BadSample as error:
            return Skip(*self._folders[pick.source].shard_of(pick.row), found.item.key, str(error), pick.source)
        finally:
            making.decode += time.perf_counter() - begin

    def _collate(self, items: list[Item], pixels: Pixels, making: _Making) -> ImageTextBatch:
        texts = [item.text for item in items]
        self._board.write(making.worker, Activity.TOKENISING, making.step)
        begin = time.perf_counter()
        ids, mask = self._tokenizer.encode(texts, self._max_tokens)
        fetched = self._fetched()
        fetched.subtract(making.fetched)
        text_seconds = time.perf_counter() - begin
        return ImageTextBatch(
            pixels=torch.from_numpy(pixels),
            token_ids=ids,
            token_mask=mask,
            labels=torch.tensor([item.label for item in items], dtype=torch.int64),
            sample_ids=torch.tensor([item.sample_id for item in items], dtype=torch.int64),
            draw_seeds=torch.tensor([item.draw_seed for item in items], dtype=torch.int64),
            texts=texts,
            captions=[item.captions for item in items],
            keys=[item.key for item in items],
            groups=[item.group for item in items],
            clusters=[item.cluster for item in items],
            skipped=making.skipped,
            ids=[item.id for item in items],
            told=[item.told for item in items],
            work=LoadWork(read=making.read, decode=making.decode, text=text_seconds, **fetched),
        )


def _keep_freed_memory() -> None:
    """Has the C library keep what pictures free, up to 64 MiB, instead of giving it back to the kernel each time.

    The kernel clears pages before it hands them out again: 20 a sample, half as long as reading it. glibc keeps twice
    the largest piece that it ever mapped by itself and got back; elsewhere this does nothing.
    """
    np.empty(_LARGEST_KEPT, dtype=np.uint8)
