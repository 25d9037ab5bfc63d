"""Write your own pictures and captions as WebDataset shards, and stream them exactly: stopped, resumed, on more ranks.

    python examples/stream_shards.py

The samples of a step are a function of seed and step, whatever stops and however many processes read. Shards that you
have already are read too, once `trimline index DIR` has counted their samples.
"""

import io
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.data.loader import LoaderConfig, StepLoader, train_loader
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.process import Process

STEPS, BATCH = 12, 16
COLOURS = ("red", "green", "blue", "yellow")


@dataclass(frozen=True)
class MyPictures:
    """Your data: how many samples there are, and those of any range; processes that write shards get a copy."""

    count: int

    def __len__(self) -> int:
        """Number of samples."""
        return self.count

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Samples start to stop - 1: encoded pictures with what is said of them."""
        for number in range(start, stop):
            colour, file = COLOURS[number % len(COLOURS)], io.BytesIO()
            Image.new("RGB", (48, 48), colour).save(file, "PNG")
            caption = f"picture {number} is {colour}"
            key, images = f"mine-{number:06d}", {"": file.getvalue()}
            yield Record(key=key, source="mine", id=str(number), images=images, captions=[caption])


def loader(folder: Path, tokenizer: Tokenizer, start_step: int = 0, rank: int = 0, world_size: int = 1) -> StepLoader:
    """The batches of a process from a step on; all that a training needs to go on after a stop is that number."""
    config = LoaderConfig(height=32, width=32, flip=True, streams=4, window=16, workers=1)
    process = Process(rank=rank, world_size=world_size)
    given: dict[str, Any] = {"text": "captions", "unit": "image", "seed": 0, "global_batch": BATCH, "steps": STEPS}
    given |= {"config": config, "tokenizer": tokenizer, "process": process}
    return train_loader([(folder, 1.0)], start_step=start_step, **given)


def main() -> None:
    """Writes, reads, stops, resumes, and compares keys."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "train"
        write_split(MyPictures(100), folder, name="train", fingerprint="mine 1", layout=Layout(shard_samples=32))
        print(f"{folder.name}: {sorted(path.name for path in folder.iterdir())}")
        tokenizer = Tokenizer.train((f"picture is {word} 0123456789" for word in COLOURS), TokenizerConfig())

        whole = [batch.keys for batch in loader(folder, tokenizer)]
        stopped = [batch.keys for batch in itertools.islice(loader(folder, tokenizer), 5)]
        resumed = [batch.keys for batch in loader(folder, tokenizer, start_step=5)]
        ranks = [loader(folder, tokenizer, rank=rank, world_size=2) for rank in range(2)]
        together = [first.keys + second.keys for first, second in zip(*ranks, strict=True)]

    print(f"step 5 begins with {', '.join(whole[5][:3])}, ...")
    print(f"stopped after 5 of {STEPS} steps and resumed: {'the same' if stopped + resumed == whole else 'DIFFERENT'}")
    print(f"two processes of {BATCH // 2} samples each: {'the same' if together == whole else 'DIFFERENT'}")
    if not stopped + resumed == together == whole:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
