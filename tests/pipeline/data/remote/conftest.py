"""Shards behind a server, read with short patience."""

from pathlib import Path

import pytest

from pipeline.data.loader import LoaderConfig, StepLoader, train_loader
from pipeline.data.text import Tokenizer
from pipeline.process import Process
from tests.data_prep.server import serving
from tests.pipeline.data.remote.shards import CONFIG
from tests.pipeline.data.samples import MakeSplit


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.patience._FIRST_PAUSE", 0.002)
    monkeypatch.setattr("data_prep.http_ranges._SECOND_LOOK", 0.0)
    monkeypatch.setattr("pipeline.data.cached_reader.BLOCK", 4096)


@pytest.fixture
def split(make_split: MakeSplit) -> Path:
    return make_split(30)


@pytest.fixture
def server(split: Path):
    with serving(split) as running:
        yield running


@pytest.fixture
def training(tokenizer: Tokenizer):
    def make(source, config: LoaderConfig = CONFIG, **options) -> StepLoader:
        chosen = {"text": "captions", "unit": "pair", "global_batch": 4, "steps": 9, "seed": 0} | options
        sources = [(source, 1.0)]
        return train_loader(sources, config=config, tokenizer=tokenizer, **{"process": Process()} | chosen)

    return make
