"""What a training process gets of a step: pictures, texts and who they are."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Skip(NamedTuple):
    """A sample that could not be used.

    Attributes:
        shard: its shard.
        number: of the sample in the shard.
        key: its name, where it could be read.
        reason: why.
        source: number of its source in the mix.
    """

    shard: str
    number: int
    key: str | None
    reason: str
    source: int = 0

    @property
    def name(self) -> str:
        """Shard, number and key."""
        return f"{self.shard}#{self.number}" + ("" if self.key is None else f" {self.key}")


@dataclass(frozen=True, kw_only=True)
class LoadWork:
    """What a worker did for the samples of a batch, summed; bad samples count too.

    Attributes:
        read: seconds for reading them from shards, and taking the members apart.
        decode: seconds for decoding, resizing and augmenting.
        text: seconds for tokenising.
        hits: parts of samples that came from the cache or had been read ahead; none of local shards.
        misses: parts that had to be waited for.
        fetched_bytes: over the network.
        failures: attempts to fetch that failed and were repeated.
    """

    read: float = 0.0
    decode: float = 0.0
    text: float = 0.0
    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    failures: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch:
    """A batch of B images with one text each. L is the fixed text length, so that shapes never change.

    Attributes:
        pixels: (B, 3, H, W) uint8, RGB; of pairs (B, 2, 3, H, W), left and right; see `transforms.normalise`.
        token_ids: (B, L) int64, padded at the end.
        token_mask: (B, L) bool, True for tokens that are not padding.
        labels: (B,) int64, 1 where the text is true of the image, 0 where it is not, -1 where nobody says; with
            "relations" the number of a statement's relation among `snli_ve.LABELS`.
        sample_ids: (B,) int64, the identity of the image: its row in samples.npy, counted on over the sources
            of a mix.
        draw_seeds: (B,) int64 that random choices about each sample derive from (`seeds.uniforms`): one for each
            (seed of the run, data set, epoch, sample, text), the same in every layout of ranks; 0 in evaluation.
        texts: the B texts as written in the data.
        captions: all captions of each image.
        keys: name of each sample.
        groups: what each sample is counted with (its permutations in NLVR); its key where it stands alone.
        clusters: what depends on each other (a presentation of NLVR) and is resampled together for intervals.
        skipped: the samples that could not be used on the way to this batch.
        ids: what each sample is called in its data set.
        told: the statement or question of each as the data has it, with what is known of it; {} for a caption; of
            `EveryImage` its `Sample.number`.
        work: what it took to make the batch.
    """

    pixels: Tensor
    token_ids: Tensor
    token_mask: Tensor
    labels: Tensor
    sample_ids: Tensor
    draw_seeds: Tensor
    texts: list[str]
    captions: list[list[str]]
    keys: list[str]
    groups: list[str]
    clusters: list[str]
    skipped: list[Skip]
    ids: list[str] = field(default_factory=list)
    told: list[Mapping[str, Any]] = field(default_factory=list)
    work: LoadWork = LoadWork()

    def __len__(self) -> int:
        """B."""
        return len(self.keys)

    def to(self, device: torch.device | str) -> "ImageTextBatch":
        """The same batch with its tensors on a device; asynchronous where they are pinned."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ImageTextBatch":
        """The same batch in page-locked memory; what a copy to a GPU can overlap with."""
        return self._each_tensor(lambda tensor: tensor.pin_memory())

    def part(self, rows: slice) -> "ImageTextBatch":
        """The batch of some of its rows; what was skipped, and the work, stay with the first."""
        names = [each.name for each in dataclasses.fields(self) if each.name not in ("skipped", "work")]
        values = {name: getattr(self, name)[rows] for name in names}
        if rows.start:
            return ImageTextBatch(**values, skipped=[])
        return ImageTextBatch(**values, skipped=self.skipped, work=self.work)

    @staticmethod
    def joined(parts: Sequence["ImageTextBatch"]) -> "ImageTextBatch":
        """One batch of several, in their order; their tokens have the same length. `work` is that of the first."""
        if len(parts) == 1:
            return parts[0]
        values: dict[str, Any] = {"work": parts[0].work}
        for name in (each.name for each in dataclasses.fields(ImageTextBatch) if each.name != "work"):
            own = [getattr(part, name) for part in parts]
            values[name] = torch.cat(own) if isinstance(own[0], Tensor) else list(chain.from_iterable(own))
        return ImageTextBatch(**values)

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> "ImageTextBatch":
        return dataclasses.replace(
            self,
            pixels=change(self.pixels),
            token_ids=change(self.token_ids),
            token_mask=change(self.token_mask),
            labels=change(self.labels),
            sample_ids=change(self.sample_ids),
            draw_seeds=change(self.draw_seeds),
        )
