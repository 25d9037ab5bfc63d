"""Questions of a split: how many each sample has, and what most annotators answered.

The index of a split counts captions and statements alone, so the split is read once for it, by each process.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import BadSample
from pipeline.data.order import Unit, Units
from pipeline.data.shards import ShardFolder

log = logging.getLogger(__name__)

_AHEAD = 64  # samples that are announced at a time
_known: dict[str, "Questions"] = {}


@dataclass(frozen=True)
class Questions:
    """What a split asks.

    Attributes:
        counts: (rows,) questions of each sample.
        answers: How often each answer is the one that most annotators gave, as it is written.
    """

    counts: NDArray[np.int64]
    answers: Counter[str]


def question_units(folder: ShardFolder, unit: Unit) -> Units:
    """What order needs to know of a folder's questions; the counterpart of `ShardFolder.units`."""
    return Units(folder.digest, folder.shard_rows, questions_of(folder).counts, unit)


def questions_of(folder: ShardFolder) -> Questions:
    """Reads the whole split, the first time that this process asks; an index stands for its data.

    A sample that cannot be read has no questions, and the log tells how many there are.
    """
    if folder.digest not in _known:
        _known[folder.digest] = _read(folder)
    return _known[folder.digest]


def _read(folder: ShardFolder) -> Questions:
    counts, answers, bad = np.zeros(len(folder), dtype=np.int64), Counter[str](), 0
    for row, fields in _fields(folder):
        asked = None if fields is None else fields.get("questions", [])
        if not isinstance(asked, list):
            bad += 1
            continue
        counts[row] = len(asked)
        answers.update(str(one["answer"]) for one in asked if isinstance(one, dict) and one.get("answer"))
    if bad:
        log.warning("%s: the questions of %d of %d samples cannot be read", folder.path, bad, len(folder))
    return Questions(counts, answers)


def _fields(folder: ShardFolder) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The JSON of each sample; None of a bad one."""
    for row in range(len(folder)):
        if row % _AHEAD == 0:
            folder.expect(range(row, min(row + 2 * _AHEAD, len(folder))))
        try:
            yield row, folder.read(row).fields
        except BadSample:
            yield row, None
