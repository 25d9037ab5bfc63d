"""The shares of a mix, counted in the batches that training gets."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.loader import LoaderConfig, train_loader
from pipeline.data.sources import describe_mix, weigh_sources
from pipeline.data.text import Tokenizer
from pipeline.process import Process
from tests.pipeline.data.samples import MakeSplit

CONFIG = LoaderConfig(height=16, width=16, streams=4, window=16, workers=0, max_tokens=12)


@pytest.mark.parametrize(
    ("meaning", "numbers", "wanted"),
    [("epochs", (1, 1), (24, 72)), ("epochs", (2, 1), (38, 58)), ("weights", (1, 1), (48, 48))],
)
def test_batches_hold_the_sources_in_their_shares(
    make_split: MakeSplit, tokenizer: Tokenizer, meaning: str, numbers: tuple[int, int], wanted: tuple[int, int]
) -> None:
    # Three of four samples have captions: 12 and 36 units.
    folders = [make_split(16, name="small"), make_split(48, name="large")]
    sources = weigh_sources(list(zip(folders, numbers, strict=True)), meaning, "captions", "image")
    options = {"text": "captions", "unit": "image", "config": replace(CONFIG), "tokenizer": tokenizer, "seed": 0}
    loader = train_loader(sources, **options, global_batch=8, process=Process(), steps=12)
    rows = [int(row) for batch in loader for row in batch.sample_ids]
    found = Counter(row >= 16 for row in rows)
    assert abs(found[False] - wanted[0]) <= 1 and abs(found[True] - wanted[1]) <= 1
    if meaning == "epochs" and numbers == (1, 1):
        assert set(Counter(rows).values()) == {2}  # two epochs of each: every image twice
    told = describe_mix(["small", "large"], sources, len(rows), "captions", "image")
    assert [of["units"] for of in told.values()] == [12, 36]
    assert [round(of["share"] * 96) for of in told.values()] == list(wanted)


def test_weights_are_left_as_they_are(tmp_path: Path) -> None:
    assert weigh_sources([(tmp_path, 3.0)], "weights", "captions", "pair") == [(tmp_path, 3.0)]
