"""A run's tokenizer: of a folder, or trained on the texts of its splits."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.decode import BadSample
from pipeline.data.sample import questions_in
from pipeline.data.shards import ShardFolder
from pipeline.data.storage import StorageConfig
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.metrics.vqa import normalised

log = logging.getLogger(__name__)


def given_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of `config.path`.

    Raises:
        UserError: It cannot be read.
    """
    assert config.path is not None
    return Tokenizer.from_pretrained(Path(config.path).expanduser(), config.max_words, config.clean, config.end)


def make_tokenizer(
    config: TokenizerConfig, told: Sequence[Path], asked: Sequence[Path], storage: StorageConfig, answers: bool
) -> Tokenizer:
    """The tokenizer that is given, or one that is trained.

    Args:
        config: Says which.
        told: Splits whose captions and statements count.
        asked: Splits whose questions count.
        storage: How they are read.
        answers: Whether these splits' answers count too.
    """
    if config.path is not None:
        return given_tokenizer(config)
    texts = itertools.chain.from_iterable(texts_of(split, storage) for split in told)
    questions = itertools.chain.from_iterable(asked_in(split, storage) for split in asked)
    given = itertools.chain.from_iterable(answers_in(split, storage) for split in asked if answers)
    return Tokenizer.train(itertools.chain(texts, questions), config, given)


def texts_of(split: Path, storage: StorageConfig | None = None) -> Iterator[str]:
    """Every caption and every statement of a split, for the vocabulary; bad samples have none."""
    for fields in _fields_of(split, storage):
        yield from fields["captions"]
        yield from (str(statement["text"]) for statement in fields.get("statements", ()))


def asked_in(split: Path, storage: StorageConfig | None = None) -> Iterator[str]:
    """Every question of a split, for the vocabulary of a run that answers them."""
    for fields in _fields_of(split, storage):
        yield from (question["question"] for question in questions_in(fields))


def answers_in(split: Path, storage: StorageConfig | None = None) -> Iterator[str]:
    """Every answer of a split, for the vocabulary of a run that tells answers word by word.

    As it is written, which is learned, and where that is another as lists have it, which is told.
    """
    for fields in _fields_of(split, storage):
        for question in questions_in(fields):
            for answer in map(str, question.get("answers") or ()):
                yield from dict.fromkeys((answer, normalised(answer)))


def _fields_of(split: Path, storage: StorageConfig | None) -> Iterator[dict[str, Any]]:
    for row, sample in ShardFolder(split, storage).in_order():
        if isinstance(sample, BadSample):
            log.warning("%s: sample %d has no texts: %s", split, row, sample)
        else:
            yield sample.fields
