"""Questions of a split: how many each sample has, what most annotators answered, and whether they did.

The index of a split counts captions and statements alone, so the split is read once for it, by one process for all.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from pipeline.data.decode import BadSample
from pipeline.data.order import Unit, Units
from pipeline.data.sample import questions_in
from pipeline.data.shards import ShardFolder
from pipeline.gathering import all_objects
from pipeline.process import Process
from pipeline.together import together

log = logging.getLogger(__name__)

_known: dict[str, "Questions"] = {}


@dataclass(frozen=True)
class Questions:
    """What a split asks.

    Attributes:
        counts: (rows,) questions of each sample.
        answers: How often each answer is the one that most annotators gave, as it is written.
        answered: How many questions have annotators' answers.
        repeated: Those `question_id` that stand more than once, in their order.
        nameless: How many questions have none.
    """

    counts: NDArray[np.int64]
    answers: Counter[str]
    answered: int
    repeated: tuple[int | str, ...] = ()
    nameless: int = 0

    def refuse_alike(self, split: str | Path) -> None:
        """Refuses, before anything is said to them, questions whose answers could not be told apart.

        Raises:
            UserError: Some have no `question_id`, or that of another.
        """
        if self.nameless:
            raise UserError(
                f"{split}: {self.nameless} questions have no question_id, which tells results apart; give each one an "
                "id, as `trimline shard vqa` does"
            )
        if self.repeated:
            first = ", ".join(map(str, self.repeated[:3]))
            raise UserError(
                f"{split}: {len(self.repeated)} question_ids stand more than once, the first ones {first}, so results "
                "cannot be told apart; give each question an id of its own"
            )


def question_units(folder: ShardFolder, unit: Unit, process: Process) -> Units:
    """What order needs to know of a folder's questions; the counterpart of `ShardFolder.units`."""
    return Units(folder.digest, folder.shard_rows, questions_of(folder, process).counts, unit)


def questions_of(folder: ShardFolder, process: Process) -> Questions:
    """Has the whole split read, the first time that it is asked for; an index stands for its data.

    A sample that cannot be read has no questions, and the log tells how many there are.

    Args:
        folder: The split.
        process: This rank. All ranks ask together: the main one reads, and tells the others.
    """
    digest = folder.digest
    if not all(all_objects(process, digest in _known)):

        def read() -> Questions | None:
            return _known.get(digest) or _read(folder) if process.is_main else None

        found = together(process, read, folder.path)[0]
        assert found is not None
        _known[digest] = found
    return _known[digest]


def _read(folder: ShardFolder) -> Questions:
    counts, answers, answered, bad = np.zeros(len(folder), dtype=np.int64), Counter[str](), 0, 0
    ids = Counter[int | str | None]()
    for row, sample in folder.in_order():
        asked = None if isinstance(sample, BadSample) else sample.fields.get("questions", [])
        if not isinstance(asked, list):
            bad += 1
            continue
        counts[row] = len(asked)
        fit = [] if isinstance(sample, BadSample) else questions_in(sample.fields)
        answers.update(str(one["answer"]) for one in fit if one.get("answer"))
        answered += sum(bool(one.get("answers")) for one in fit)
        ids.update(one.get("question_id") for one in fit)
    if bad:
        log.warning("%s: the questions of %d of %d samples cannot be read", folder.path, bad, len(folder))
    nameless = ids.pop(None, 0)
    repeated = tuple(name for name, count in ids.items() if name is not None and count > 1)
    return Questions(counts, answers, answered, repeated, nameless)
