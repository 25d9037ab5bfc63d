"""Whether each split has the texts that a run wants of it, by what its index counts."""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.errors import UserError
from launch.config import RunConfig, TaskConfig
from launch.reading import below
from launch.tasks import tasks_of
from pipeline.data.sample import TextKind
from pipeline.data.shards import ShardFolder
from pipeline.tasks.classes import TEXTS

_Wanted = tuple[str, str, TextKind, str]
"""The key that names a split, the split, which texts, and who wants them."""

_COUNTED: tuple[TextKind, ...] = ("captions", "statements")


def check_texts(config: RunConfig, folder_of: Callable[[str], Path | None], until: str | None = None) -> None:
    """Refuses splits without the captions or statements that a stage would miss, before the first one is trained.

    Args:
        config: Of a run.
        folder_of: Where a split's shards lie; None for what is not there yet.
        until: The last kind of stage that is to run (`launch.stages.KINDS`); None for all.

    Raises:
        UserError: A split has none, or its index cannot be used.
    """
    wants: list[tuple[str, _Wanted]] = [("", each) for each in _of_pretraining(config, until)]
    if until != "pretrain":
        wants += [(task.key, each) for task in tasks_of(config) for each in _of_task(task.config)]
    for key, (group, split, kind, who) in wants:
        folder = folder_of(split)
        if folder is None:
            continue
        shards = ShardFolder(folder)
        if not shards.units(kind, "pair").total:
            said = f"{group} names the split {split!r}, which has {len(shards)} samples but no {kind}"
            raise UserError(below(key, TaskConfig, f"{said}, which {who} wants; name another split"))


def _of_pretraining(config: RunConfig, until: str | None) -> Iterator[_Wanted]:
    for split in config.pretrain_splits:
        yield "pretrain.splits", split, "captions", "pre-training"
    for split in config.evaluate.retrieval_splits if until in (None, "evaluate") else ():
        yield "evaluate.retrieval_splits", split, "captions", "retrieval"


def _of_task(config: RunConfig) -> Iterator[_Wanted]:
    trim, kind = config.trim, TEXTS[config.trim.task]
    if not trim.targets or kind not in _COUNTED:
        return
    told = [("trim.splits", split) for split in trim.splits]
    if trim.validation.every_steps:
        told.append(("trim.validation.split", trim.validation.split))
    if trim.task != "captioning":  # pictures that nobody has told of can be captioned all the same
        told += [("evaluate.statement_splits", split) for split in config.evaluate.statement_splits]
    for group, split in told:
        yield group, split, kind, f"trim.task={trim.task}"
