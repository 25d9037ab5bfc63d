"""The answers that a VQA classifier tells apart, made from training's annotations as the field does.

Each question's most frequent answer is normalised as the server does it; those that occur often enough are the list.
With at least 9 occurrences, training and validation together, VQA v2 has 3,129.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.data.questions import questions_of
from pipeline.data.shards import ShardFolder
from pipeline.limits import at_least
from pipeline.metrics.vqa import normalised
from pipeline.process import Process

ANSWERS = "answers.json"
"""Of an export folder: the list, in the order of the head's scores."""
_NAMED = 3  # of the answers that are too many


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """Which answers are on the list.

    Attributes:
        at_least: For how many questions of the training splits it is the most frequent answer.
        candidates: Of ``vqa_generative``: how many of the list are scored whole, the likeliest by their first word.
    """

    at_least: int = 9
    candidates: int = 128

    def __post_init__(self) -> None:
        at_least(self, "trim.answers", 1, "at_least", "candidates")


def make_answers(folders: Iterable[ShardFolder], config: AnswersConfig, process: Process) -> tuple[str, ...]:
    """The list: the most frequent answers first, equally frequent ones by the alphabet.

    Args:
        folders: Training splits with questions and their answers.
        config: Which of them count.
        process: This rank; all ranks call it together.

    Raises:
        UserError: A split has no answered question, or fewer than two answers are frequent enough.
    """
    folders = list(folders)
    found = Counter[str]()
    for folder in folders:
        questions = questions_of(folder, process)
        if not questions.answered:
            raise UserError(
                f"{folder.path}: none of its {questions.counts.sum()} questions has `answers` of annotators; use a "
                "split that has them, made of the data set's questions and annotations (`trimline shard vqa`)"
            )
        for answer, count in questions.answers.items():
            found[normalised(answer)] += count
    found.pop("", None)
    often = [answer for answer, count in found.items() if count >= config.at_least]
    if len(often) < 2:
        where = ", ".join(str(folder.path) for folder in folders)
        raise UserError(
            f"{len(often)} of {len(found)} answers occur at least trim.answers.at_least={config.at_least} times in "
            f"{where}, and a classifier wants two; use splits with answered questions, or a lower number"
        )
    return tuple(sorted(often, key=lambda answer: (-found[answer], answer)))


def read_answers(folder: Path) -> tuple[str, ...]:
    """The list of an export folder.

    Raises:
        UserError: There is none, or it is no list of different texts.
    """
    if not (folder / ANSWERS).is_file():
        raise UserError(f"{folder} has no {ANSWERS}, the answers that its head scores; export it again")
    return read_answer_list(folder / ANSWERS, "export it again")


def describe_answers(answers: Sequence[str]) -> dict[str, Any]:
    """What an export's config.json says of its list, so that another one beside it is noticed."""
    written = json.dumps(list(answers)).encode()
    return {"count": len(answers), "sha256": hashlib.sha256(written).hexdigest()}


def check_learned(answers: Sequence[str], described: Mapping[str, Any] | None) -> None:
    """Refuses a list that is not the one that a model learned; no size of a decoder that ranks answers tells.

    Args:
        answers: The list.
        described: Of the export (`describe_answers`); None of an older one, which does not say.

    Raises:
        UserError: It is another list, or in another order.
    """
    if described is None or described == describe_answers(answers):
        return
    raise UserError(
        f"{ANSWERS} lists {len(answers)} answers that are not the {described.get('count')} that the model learned, in "
        "their order; copy or export the folder again"
    )


def read_answer_list(file: Path, mend: str) -> tuple[str, ...]:
    """The answers of a JSON file.

    Args:
        file: It is there.
        mend: What to do where it is no such list.

    Raises:
        UserError: It is no list of different texts, or it is empty.
    """
    answers = read_json(file)
    if answers == []:
        raise UserError(f"{file} is an empty list; {mend}")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{file} is no list of texts; {mend}")
    if twice := [answer for answer, count in Counter(answers).items() if count > 1]:
        raise UserError(f"{file} has {len(twice)} answers twice, such as {twice[0]!r}; {mend}")
    return tuple(answers)


def check_fits(file: Path | str, answers: Sequence[str], scored: int, mend: str) -> None:
    """Refuses a list that is not that of a head.

    Args:
        file: Where the list stands.
        answers: All of it.
        scored: How many answers the head scores.
        mend: What to do.

    Raises:
        UserError: It has more answers, or fewer.
    """
    if len(answers) == scored:
        return
    if len(answers) > scored:
        beyond = answers[scored:]
        named = ", ".join(map(repr, beyond[:_NAMED])) + (" and so on" if len(beyond) > _NAMED else "")
        wrong = f"{len(beyond)} too many, from {named}"
    else:
        wrong = f"it ends with {answers[-1]!r}, {scored - len(answers)} too early"
    raise UserError(
        f"{file} lists {len(answers)} answers, but the head scores {scored}: {wrong}; the list is that of another "
        f"model; {mend}"
    )
