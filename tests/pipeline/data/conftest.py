"""Small shard folders, written by the project's own writer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.data.text import Tokenizer, TokenizerConfig

MakeSplit = Callable[..., Path]


def png(seed: int, height: int = 16, width: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@dataclass(frozen=True)
class Listed:
    listed: Sequence[Record]

    def __len__(self) -> int:
        return len(self.listed)

    def records(self, start: int, stop: int) -> Iterator[Record]:
        yield from self.listed[start:stop]


@pytest.fixture
def make_split(tmp_path: Path) -> MakeSplit:
    """Writes `count` samples s0, s1, ...: two captions each, but every fourth has none; three statements."""

    def make(count: int, shard_samples: int = 5, name: str = "train") -> Path:
        records = [
            Record(
                key=f"s{i}",
                source="test",
                id=str(i),
                images={"": png(i)},
                captions=[] if i % 4 == 3 else [f"caption {k} of {i}" for k in range(2)],
                statements=[{"text": f"statement {k} of {i}", "label": k == i % 3} for k in range(3)],
                group=f"g{i // 2}",
            )
            for i in range(count)
        ]
        folder = tmp_path / name
        options = {"name": name, "fingerprint": "test", "shard_samples": shard_samples, "workers": 1}
        write_split(Listed(records), folder, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [f"{word} {k} of {i}" for word in ("caption", "statement") for k in range(3) for i in range(40)]
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=200))
