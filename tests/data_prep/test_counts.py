"""What an index says of the texts of each shard."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.index import COUNTS, load_index
from data_prep.make_index import index_folder
from data_prep.repair import repair_folder
from data_prep.sources import SourceConfig, prepare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {"train": 26, "val": 0, "test": 0, "unseen": 0}
    prepare(SourceConfig(sizes=sizes, image_size=16, shard_samples=10), tmp_path, workers=1)
    return tmp_path / "train"


def check(folder: Path, samples: int) -> list[dict]:
    index, rows = load_index(folder)
    shards = index["shardlist"]
    assert sum(shard["nsamples"] for shard in shards) == samples
    blocks = np.split(rows, np.cumsum([shard["nsamples"] for shard in shards])[:-1])
    for shard, block in zip(shards, blocks, strict=True):
        for column, (total, having) in COUNTS.items():
            values = block[:, ("begin", "end", "captions", "statements").index(column)]
            assert shard[total] == values.sum() >= shard[having] == (values > 0).sum()
    return shards


def test_written_made_and_repaired_indexes_count_alike(folder: Path) -> None:
    written = check(folder, 26)
    assert written[0]["captions"] > 0 and written[0]["statements"] > 0
    (folder / "index.json").unlink()
    index_folder(folder)
    assert check(folder, 26) == written
    data = bytearray((folder / "00001.tar").read_bytes())
    data[600:900] = bytes(300)
    (folder / "00001.tar").write_bytes(data)
    repair_folder(folder)
    repaired = check(folder, 25)
    assert repaired[0] == written[0] and repaired[1]["captions"] < written[1]["captions"]
    assert json.loads((folder / "index.json").read_text())["wids_version"] == 1
