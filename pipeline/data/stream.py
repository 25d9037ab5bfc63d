"""Global step -> this rank's batch: reads, decodes, augments and tokenises what the order names."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch, Skip
from pipeline.data.decode import BadSample, Pixels
from pipeline.data.order import Order, Pick, Slot
from pipeline.data.shards import Sample, ShardFolder, TextKind
from pipeline.data.text import Tokenizer

logger = logging.getLogger(__name__)

Transform = Callable[[bytes, str, Pick], Pixels]
DrawSeed = Callable[[Pick], int]
_FURTHEST = 64  # steps that are announced in advance at most


@dataclass(frozen=True, kw_only=True)
class Item:
    """One usable sample on its way into a batch."""

    pixels: Pixels
    text: str
    label: int
    sample_id: int
    draw_seed: int
    sample: Sample


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
        stop: int,
        read_ahead_bytes: int,
    ) -> None:
        """Puts the parts together; nothing is read yet.

        Args:
            folders: the sources that the order numbers.
            order: which samples a step has.
            transform: encoded image, its text and its place in the order -> pixels.
            draw_seed: place in the order -> what random choices about the sample derive from, in [0, 2**63).
            tokenizer: of the texts.
            text: which of a sample's texts go with it.
            size: (height, width) that the transform gives.
            max_tokens: L.
            rank: of this process.
            world_size: number of processes.
            stop: the step behind the last that anybody will ask for.
            read_ahead_bytes: samples of later steps that are announced to the folders at most.
        """
        self._folders = list(folders)
        self._order = order
        self._transform = transform
        self._draw_seed = draw_seed
        self._tokenizer = tokenizer
        self._text: TextKind = text
        self._size = size
        self._max_tokens = max_tokens
        self._rank = rank
        self._world_size = world_size
        self._stop = stop
        self._read_ahead_bytes = read_ahead_bytes
        self._announced: dict[int, list[Pick | None]] = {}
        self._first_ids = np.cumsum([0, *(len(folder) for folder in folders)]).tolist()

    def __getitem__(self, step: int) -> ImageTextBatch:
        """Makes the batch of a step.

        Raises:
            UserError: no sample of a slot's range can be read, or a shard cannot be opened.
        """
        if cv2.getNumThreads() != 1:
            cv2.setNumThreads(0)  # its threads would fight with the trainer's for the cores, and die in a fork
        self._announce(step)
        skipped: list[Skip] = []
        slots = self._order.slots(step, self._rank, self._world_size)
        picks = self._announced.pop(step, None) or [self._order.pick(slot) for slot in slots]
        items = [self._item(slot, pick, skipped) for slot, pick in zip(slots, picks, strict=True)]
        return self._collate([item for item in items if item is not None], skipped)

    def _announce(self, step: int) -> None:
        """Tells the folders what this step and the next ones of this worker will read, as far as the limit allows."""
        if not self._read_ahead_bytes or not any(folder.reader.reads_ahead for folder in self._folders):
            return
        furthest = _FURTHEST
        if step not in self._announced:  # the first step, or a jump: it shall not have to share the network
            furthest = 1
            self._announced.clear()
            for folder in self._folders:
                folder.reader.forget()
        worker = get_worker_info()
        stride = 1 if worker is None else worker.num_workers
        for later in range(step, min(self._stop, step + furthest * stride), stride):
            if later in self._announced:
                continue
            if later > step and sum(folder.reader.ahead for folder in self._folders) >= self._read_ahead_bytes:
                break
            slots = self._order.slots(later, self._rank, self._world_size)
            picks = self._announced[later] = [self._order.pick(slot) for slot in slots]
            for number, folder in enumerate(self._folders):
                folder.expect([pick.row for pick in picks if pick is not None and pick.source == number])

    def _item(self, slot: Slot, pick: Pick | None, skipped: list[Skip]) -> Item | None:
        """The sample of a slot or, where it is bad, its first good stand-in; None where there may be none."""
        attempt = 0
        while pick is not None:
            folder, key = self._folders[pick.source], None
            try:
                sample = folder.read(pick.row)
                key = sample.key
                return self._use(sample, pick)
            except BadSample as error:
                skipped.append(Skip(*folder.shard_of(pick.row), key, str(error), pick.source))
            attempt += 1
            pick = self._order.pick(slot, attempt)
        if attempt > 1:
            raise UserError(
                f"none of {attempt} samples around {skipped[-1].name} of {folder.path} can be used "
                f"({skipped[-1].reason}); check the shards with `trimline verify`"
            )
        return None

    def _use(self, sample: Sample, pick: Pick) -> Item:
        try:
            text, label = sample.text(self._text, pick.text)
        except (KeyError, IndexError, TypeError) as error:
            raise BadSample(f"has no {self._text}[{pick.text}], which the index promises") from error
        return Item(
            pixels=self._transform(sample.image, text, pick),
            text=text,
            label=label,
            sample_id=self._first_ids[pick.source] + pick.row,
            draw_seed=self._draw_seed(pick),
            sample=sample,
        )

    def _collate(self, items: list[Item], skipped: list[Skip]) -> ImageTextBatch:
        texts = [item.text for item in items]
        pixels = np.empty((len(items), 3, *self._size), dtype=np.uint8)
        for slot, item in enumerate(items):
            pixels[slot] = item.pixels.transpose(2, 0, 1)
        ids, mask = self._tokenizer.encode(texts, self._max_tokens)
        return ImageTextBatch(
            pixels=torch.from_numpy(pixels),
            token_ids=ids,
            token_mask=mask,
            labels=torch.tensor([item.label for item in items], dtype=torch.int64),
            sample_ids=torch.tensor([item.sample_id for item in items], dtype=torch.int64),
            draw_seeds=torch.tensor([item.draw_seed for item in items], dtype=torch.int64),
            texts=texts,
            captions=[item.sample.captions for item in items],
            keys=[item.sample.key for item in items],
            groups=[item.sample.group for item in items],
            clusters=[item.sample.cluster for item in items],
            skipped=skipped,
        )
