"""Whether a split is of the task that is asked of it: told before all of it is read as if it were damaged."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import UserError
from pipeline.data.decode import BadSample
from pipeline.data.sample import Sample
from pipeline.tasks.classes import has_task

_WANTED = {
    "snli_ve": "statements with a relation to one picture (`trimline shard snli_ve`)",
    "nlvr2": "statements about pairs of pictures (`trimline shard nlvr2`)",
}


def check_of_task(task: str, split: str | Path, samples: Sequence[Sample]) -> None:
    """Refuses data of another task: each sample would be counted as one that cannot be read.

    Args:
        task: Of an evaluation.
        split: Where the data lies.
        samples: The first ones; a split may have some that are not of the task.

    Raises:
        UserError: None of them is of the task.
    """
    if samples and not any(_is_of(task, sample) for sample in samples):
        first = samples[0]
        has = f"{len(first.images)} picture(s) and {len(first.fields.get('statements', ()))} statement(s)"
        wanted = _WANTED.get(task, "one picture a sample")
        raise UserError(f"{split} is not data of {task}, which wants {wanted}: {first.key}, its first, has {has}")


def _is_of(task: str, sample: Sample) -> bool:
    """What has no statements at all may stand beside others that have some."""
    try:
        sample.pictures("pairs" if task == "nlvr2" else "captions")
    except BadSample:
        return False
    told = sample.fields.get("statements")
    return task != "snli_ve" or not told or has_task(sample, "snli_ve")
