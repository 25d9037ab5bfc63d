"""The first samples of a split: what its data is like, before anything runs."""

import logging
from pathlib import Path

from pipeline.data.decode import BadSample
from pipeline.data.sample import Sample
from pipeline.data.shards import ShardFolder
from pipeline.data.storage import StorageConfig

log = logging.getLogger(__name__)

_LOOKED_AT = 8


def first_samples(path: str | Path, storage: StorageConfig | None = None) -> list[Sample]:
    """The first 8 samples, or fewer: one that cannot be read is left out, and the log says so.

    Args:
        path: Folder of a split, or its URL.
        storage: How shards are read.

    Raises:
        UserError: There is no usable index, or a shard cannot be opened.
    """
    shards = ShardFolder(path, storage)
    found = []
    try:
        for row in range(min(_LOOKED_AT, len(shards))):
            try:
                found.append(shards.read(row))
            except BadSample as error:
                log.warning("%s: sample %d cannot be read: %s", path, row, error)
    finally:
        shards.close()
    return found
