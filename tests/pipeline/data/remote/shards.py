"""What the tests of shards behind a URL have in common."""

import time
from collections.abc import Iterable
from pathlib import Path

from data_prep.errors import UserError
from pipeline.data.decode import BadSample
from pipeline.data.loader import LoaderConfig, StepLoader
from pipeline.data.shards import ShardFolder
from pipeline.data.storage import StorageConfig
from tests.data_prep.server import Server

KEEP = {"silence_seconds": 0.3, "give_up_seconds": 5.0}
CONFIG = LoaderConfig(height=12, width=16, crop_scale=(0.5, 1.0), streams=2, window=8, workers=0, max_tokens=8, **KEEP)


def storage(tmp_path: Path, cached: bool, **more) -> StorageConfig:
    return StorageConfig(**KEEP | {"cache_dir": str(tmp_path / "cache") if cached else None} | more)


def expect(folder: ShardFolder, rows: Iterable[int]) -> None:
    """Announces samples, and waits until the threads have fetched them."""
    folder.expect(rows)
    end = time.monotonic() + 20
    while not all(future.done() for future in list(folder.reader._work().flying.values())):
        assert time.monotonic() < end
        time.sleep(0.002)


def contents(folder: ShardFolder, announce=ShardFolder.expect) -> list[tuple]:
    announce(folder, range(len(folder)))
    return [(sample.key, sample.images, sample.fields) for sample in map(folder.read, range(len(folder)))]


def tars(server: Server) -> list[str]:
    return [name for name, _ in server.requests if name.endswith(".tar")]


def sequence(loader: StepLoader) -> list[tuple]:
    return [
        (key, text, pixels.tobytes())
        for batch in loader
        for key, text, pixels in zip(batch.keys, batch.texts, batch.pixels.numpy(), strict=True)
    ]


def outcome(folder: ShardFolder, row: int) -> str:
    try:
        return folder.read(row).key
    except (BadSample, UserError) as error:
        return str(error)
