"""Small shard folders, written by the project's own writer."""

from pathlib import Path

import pytest

from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.data.text import Tokenizer, TokenizerConfig
from tests.pipeline.data.samples import Listed, MakeSplit, png


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
        options = {"name": name, "fingerprint": "test", "layout": Layout(shard_samples=shard_samples)}
        write_split(Listed(records), folder, workers=1, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [f"{word} {k} of {i}" for word in ("caption", "statement") for k in range(3) for i in range(40)]
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=200))
