"""Other projects' loaders over the samples of `trimline bench loader`; each runs in an environment of its own.

All give the same: pixels of the same decoder and resize, stacked to (B, 3, H, W) uint8, and the texts' tokens, made in
loader processes; all shuffle. Each is written as its own documentation shows.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer
from pipeline.data.transforms import TransformConfig, eval_image

REQUIREMENTS = {
    "webdataset": (),  # ours
    "energon": ("megatron-energon==7.4.1",),
    "streaming": ("mosaicml-streaming==0.13.0",),
    "litdata": ("litdata==0.2.76",),
}
_SHUFFLED = 256  # samples in a buffer, where a loader shuffles by one


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """What every contender loads.

    Attributes:
        root: Folder of the data; its folder `train` holds our shards.
        scratch: Folder for a contender's own copy of them.
        tokenizer: Folder.
        size: Height and width of the result.
        max_tokens: Of a text.
        batch: Samples a batch.
        workers: Loader processes.
        samples: Of a lap.
        seed: Of the order.
    """

    root: str
    scratch: str
    tokenizer: str
    size: int
    max_tokens: int
    batch: int
    workers: int
    samples: int
    seed: int

    @property
    def shards(self) -> Path:
        """Folder of our shards."""
        return Path(self.root) / "train"


Batches = Callable[[], Iterator[Any]]
"""Begins anew and gives batches, each with its pixels first."""


class Work:
    """What a peer's loader processes do with a sample and with a batch."""

    def __init__(self, spec: LoaderSpec) -> None:
        cv2.setNumThreads(0)  # as in our loader and in the decoder; workers are forked and inherit it
        self.config = TransformConfig(height=spec.size, width=spec.size)
        self.tokenizer = Tokenizer.load(spec.tokenizer)
        self.max_tokens = spec.max_tokens

    def image(self, data: bytes) -> Tensor:
        """Decodes and resizes, (3, H, W)."""
        return torch.from_numpy(eval_image(data, self.config)).permute(2, 0, 1)

    def pair(self, sample: tuple[bytes, bytes]) -> tuple[Tensor, str]:
        """Decodes the picture of a pair."""
        return self.image(sample[0]), sample[1].decode()

    def collate(self, samples: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Stacks the pictures and tokenises the texts."""
        ids, mask = self.tokenizer.encode([text for _, text in samples], self.max_tokens)
        return default_collate([image for image, _ in samples]), ids, mask


def _our_samples(spec: LoaderSpec) -> Iterator[dict[str, Any]]:
    folder = ShardFolder(spec.shards)
    for row in range(len(folder)):
        sample = folder.read(row)
        yield {"image": bytes(sample.image), "caption": sample.captions[0]}


def webdataset_peer(spec: LoaderSpec) -> Batches:
    """Webdataset's fluid interface, with batches made by its workers."""
    import webdataset

    work = Work(spec)
    tars = sorted(str(path) for path in spec.shards.glob("*.tar"))

    def batches() -> Iterator[Any]:
        data = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=spec.seed).shuffle(_SHUFFLED)
        data = data.to_tuple("jpg;png;webp", "txt").map(work.pair).batched(spec.batch, collation_fn=work.collate)
        return iter(webdataset.WebLoader(data, batch_size=None, num_workers=spec.workers))

    return batches


def energon_peer(spec: LoaderSpec) -> Batches:
    """Megatron-Energon over our shards, prepared by its own tool."""
    import megatron.energon as energon

    _prepare_energon(spec)
    work = Work(spec)

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None  # pictures stay files until our decoder has them

        @energon.stateless  # type: ignore[untyped-decorator]
        def encode_sample(self, sample: Any) -> Any:
            """Decodes."""
            sample.image = work.image(sample.image)
            return sample

        def batch(self, samples: list[Any]) -> Any:
            """Collates."""
            return work.collate([(sample.image, _text(sample.caption)) for sample in samples])

    def batches() -> Iterator[Any]:
        workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=spec.workers, seed_offset=spec.seed)
        data = energon.get_train_dataset(
            spec.root,
            worker_config=workers,
            batch_size=spec.batch,
            shuffle_buffer_size=_SHUFFLED,
            max_samples_per_sequence=_SHUFFLED,
            task_encoder=Encoder(),
        )
        return iter(energon.get_loader(data))

    return batches


def _prepare_energon(spec: LoaderSpec) -> None:
    command = [
        str(Path(sys.executable).with_name("energon")), "prepare", spec.root, "--non-interactive", "--num-workers", "1",
        "--split-parts", r"train:train/.*\.tar", "--sample-type", "CaptioningSample",
        "--field-map", json.dumps({"image": "jpg,png,webp", "caption": "txt"}),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"energon prepare: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def streaming_peer(spec: LoaderSpec) -> Batches:
    """MosaicML Streaming over its own shards, on this disk."""
    import streaming

    work, place = Work(spec), str(Path(spec.scratch) / "mds")
    with streaming.MDSWriter(out=place, columns={"image": "bytes", "caption": "str"}) as writer:
        for sample in _our_samples(spec):
            writer.write(sample)

    class Pictures(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return work.image(sample["image"]), sample["caption"]

    def batches() -> Iterator[Any]:
        streaming.base.util.clean_stale_shared_memory()
        data = Pictures(local=place, shuffle=True, shuffle_seed=spec.seed, batch_size=spec.batch)
        loader: DataLoader[Any] = DataLoader(
            data, batch_size=spec.batch, num_workers=spec.workers, collate_fn=work.collate
        )
        return iter(loader)

    return batches


def litdata_peer(spec: LoaderSpec) -> Batches:
    """LitData over its own chunks, on this disk."""
    import litdata
    from litdata.streaming.cache import Cache

    work, place = Work(spec), str(Path(spec.scratch) / "litdata")
    writer = Cache(place, chunk_bytes="64MB")
    for number, sample in enumerate(_our_samples(spec)):
        writer[number] = sample
    writer.done()
    writer.merge()

    class Pictures(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return work.image(sample["image"]), sample["caption"]

    def batches() -> Iterator[Any]:
        data = Pictures(place, shuffle=True, seed=spec.seed)
        return iter(
            litdata.StreamingDataLoader(data, batch_size=spec.batch, num_workers=spec.workers, collate_fn=work.collate)
        )

    return batches


PEERS: dict[str, Callable[[LoaderSpec], Batches]] = {
    "webdataset": webdataset_peer,
    "energon": energon_peer,
    "streaming": streaming_peer,
    "litdata": litdata_peer,
}
