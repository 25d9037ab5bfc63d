"""What a task tells apart: classes of which one is right, answers with scores (VQA), or the next word (captioning).

B batch, A classes or answers, L text tokens, V vocabulary, M words to tell.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from data_prep.sources.snli_ve import LABELS
from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import SIDES, Sample, TextKind, questions_in
from pipeline.objectives.answers import answer_loss
from pipeline.objectives.gather import mean_over_global_count
from pipeline.objectives.lm import caption_loss, next_words
from pipeline.tasks.compared import Compared
from pipeline.trimming.distillation import answer_divergence, class_divergence

TaskName = Literal["statement", "snli_ve", "vqa", "vqa_generative", "captioning", "nlvr2", "retrieval"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
TEXTS: Mapping[TaskName, TextKind] = {
    "statement": "statements",
    "snli_ve": "relations",
    "vqa": "questions",
    "vqa_generative": "questions",
    "captioning": "captions",
    "nlvr2": "pairs",
    "retrieval": "captions",
}
"""What each task reads of a sample."""
LEARNED: Mapping[TaskName, TextKind] = {
    task: "answers" if text == "questions" else text for task, text in TEXTS.items()
}
"""What it learns from: questions may be unanswered where they are only asked."""
ANSWERING: tuple[TaskName, ...] = ("vqa", "vqa_generative")
"""Tasks with a list of answers."""

TOLD: tuple[TaskName, ...] = ("captioning", "retrieval")
"""Tasks that learn from captions."""

_SCORES = (0.0, 0.3, 0.6, 0.9)
"""Of an answer that so many annotators gave; of more of them it is 1."""


@dataclass(frozen=True)
class Classes(ABC):
    """What a head's scores stand for, and what is right.

    Attributes:
        task: Name of the task.
        names: Of the A classes or answers, in the order of the scores.
    """

    task: TaskName
    names: tuple[str, ...]

    @property
    def text(self) -> TextKind:
        """What the task reads of a sample."""
        return TEXTS[self.task]

    @abstractmethod
    def targets(self, batch: ImageTextBatch) -> Tensor:
        """What is right of each instance, on the batch's device.

        Raises:
            UserError: The data does not say.
        """

    def rows(self, batch: ImageTextBatch) -> Tensor:
        """Of which instance of the batch each row of scores is."""
        return torch.arange(len(batch))

    @abstractmethod
    def loss(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Scalar, mean over the batch."""

    @abstractmethod
    def own_loss(self, scores_BA: Tensor) -> Tensor:
        """Scalar, sum over the batch: the loss where what the model says is taken for right."""

    @abstractmethod
    def divergence(self, trimmed_BA: Tensor, full_BA: Tensor) -> Tensor:
        """Scalar: KL of the task's own distribution, trimmed from full; no gradient flows to the full one's side."""

    @abstractmethod
    def accuracy(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Scalar: mean score of what is said, 1 for what is right."""

    @abstractmethod
    def probabilities(self, scores_BA: Tensor) -> Tensor:
        """(B, A)."""


class OneOf(Classes):
    """Classes of which exactly one is right: softmax."""

    def targets(self, batch: ImageTextBatch) -> Tensor:
        """(B,) number of the right class."""
        return batch.labels

    def loss(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(scores_BA, targets)

    def own_loss(self, scores_BA: Tensor) -> Tensor:
        """Cross entropy of the likeliest class."""
        return F.cross_entropy(scores_BA, scores_BA.detach().argmax(1), reduction="sum")

    def divergence(self, trimmed_BA: Tensor, full_BA: Tensor) -> Tensor:
        """Of the classes' distributions."""
        return class_divergence(trimmed_BA, full_BA)

    def accuracy(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Share of right answers."""
        return (scores_BA.detach().argmax(1) == targets).float().mean()

    def probabilities(self, scores_BA: Tensor) -> Tensor:
        """Softmax."""
        return scores_BA.softmax(-1)


class AnswerList(Classes):
    """Answers that may each be right, by how many annotators gave them: a sigmoid each (METER's VQA)."""

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def targets(self, batch: ImageTextBatch) -> Tensor:
        """(B, A) soft scores; a question none of whose answers are on the list has none, and teaches nothing."""
        targets_BA = torch.zeros(len(batch), len(self.names))
        for row, told in enumerate(batch.told):
            for answer, score in soft_scores(annotated_answers(told, batch.keys[row])).items():
                if (number := self._numbers.get(answer)) is not None:
                    targets_BA[row, number] = score
        return targets_BA.to(batch.labels.device)

    def loss(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy, summed over answers, of questions with an answer on the list; mean over the batch."""
        return answer_loss(scores_BA, targets, targets.any(1, keepdim=True).to(targets.dtype))

    def own_loss(self, scores_BA: Tensor) -> Tensor:
        """The same with the likeliest answer for the only right one."""
        said_BA = F.one_hot(scores_BA.detach().argmax(1), scores_BA.shape[1]).to(scores_BA.dtype)
        return answer_loss(scores_BA, said_BA) * len(scores_BA)

    def divergence(self, trimmed_BA: Tensor, full_BA: Tensor) -> Tensor:
        """Bernoulli of each answer, summed over answers."""
        return answer_divergence(trimmed_BA, full_BA)

    def accuracy(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Mean soft score of the likeliest answer."""
        return targets.gather(1, scores_BA.detach().argmax(1, keepdim=True)).mean()

    def probabilities(self, scores_BA: Tensor) -> Tensor:
        """A sigmoid each."""
        return scores_BA.sigmoid()


@dataclass(frozen=True)
class Captions(Classes):
    """Words that tell of a picture: each is one of the vocabulary, from those before it (BLIP's LM).

    Scores here are (M, V), of all words that a batch is to tell.

    Attributes:
        given: Tokens that every text begins with and that are not told, [DEC] too.
        beams: With which it is told (`Speech`).
    """

    given: int = 1
    beams: int = 1

    def words(self, mask_BL: Tensor) -> Tensor:
        """(B, L) True at the M places whose next word is to be told."""
        return next_words(mask_BL, self.given)

    def rows(self, batch: ImageTextBatch) -> Tensor:
        """(M,) the caption of each word to tell."""
        return self.words(batch.token_mask).nonzero()[:, 0]

    def targets(self, batch: ImageTextBatch) -> Tensor:
        """(M,) tokens to tell."""
        return batch.token_ids[self.words(batch.token_mask).roll(1, 1)]

    def loss(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy with smoothed labels, mean over the words of all processes."""
        return caption_loss(scores_BA, targets)

    def own_loss(self, scores_BA: Tensor) -> Tensor:
        """Cross entropy of the likeliest words."""
        return F.cross_entropy(scores_BA, scores_BA.detach().argmax(1), reduction="sum")

    def divergence(self, trimmed_BA: Tensor, full_BA: Tensor) -> Tensor:
        """Of the vocabulary's distributions, mean over the words of all processes."""
        return word_divergence(trimmed_BA, full_BA)

    def accuracy(self, scores_BA: Tensor, targets: Tensor) -> Tensor:
        """Share of words that are told rightly behind the right ones."""
        return (scores_BA.detach().argmax(1) == targets).float().mean()

    def probabilities(self, scores_BA: Tensor) -> Tensor:
        """Softmax."""
        return scores_BA.softmax(-1)


class InBatch(OneOf):
    """Whether a text belongs to a picture; it is learned among the pairs of a batch, from `Compared` for scores."""

    def loss(self, scores_BA: Compared, targets: Tensor) -> Tensor:  # type: ignore[override]
        """That of what was compared."""
        return scores_BA.loss()

    def divergence(self, trimmed_BA: Compared, full_BA: Compared) -> Tensor:  # type: ignore[override]
        """Of the same pairs."""
        return trimmed_BA.divergence(full_BA)

    def accuracy(self, scores_BA: Compared, targets: Tensor) -> Tensor:  # type: ignore[override]
        """Share of what finds its own first."""
        return scores_BA.accuracy()


STATEMENT = OneOf("statement", ("false", "true"))
SNLI_VE = OneOf("snli_ve", LABELS)
NLVR2 = OneOf("nlvr2", ("false", "true"))
RETRIEVAL = InBatch("retrieval", ("false", "true"))
JUDGING: tuple[Classes, ...] = (STATEMENT, NLVR2, RETRIEVAL)
"""Whether a sentence is true of what is shown."""
_FIXED: Mapping[str, Classes] = {each.task: each for each in (STATEMENT, SNLI_VE, NLVR2, RETRIEVAL)}


def classes_of(task: str, answers: Sequence[str] = ()) -> Classes:
    """The classes of a task whose model has a classifier.

    Args:
        task: One of `TASKS`.
        answers: The answer list, where the task has one.
    """
    return _FIXED[task] if task in _FIXED else AnswerList("vqa", tuple(answers))


def word_divergence(trimmed_MV: Tensor, full_MV: Tensor) -> Tensor:
    """Scalar: KL of the vocabulary's distributions, mean over the words of all processes."""
    count = torch.tensor(len(trimmed_MV), device=trimmed_MV.device)
    return mean_over_global_count(class_divergence(trimmed_MV, full_MV) * count, count)


def has_task(sample: Sample, task: TaskName, answered: bool = True) -> bool:
    """Whether a sample has what a task learns; its questions may be unanswered where they are only asked."""
    if task in TOLD:
        return bool(sample.fields.get("captions"))
    statements = sample.fields.get("statements", ())
    if task in ANSWERING:
        return any(question.get("answers") or not answered for question in questions_in(sample.fields))
    if task == "nlvr2":
        return bool(statements) and set(sample.images) == set(SIDES)
    return any(task == "statement" or statement.get("relation") in LABELS for statement in statements)


def annotated_answers(told: Mapping[str, Any], key: str) -> list[str]:
    """What the annotators said to a question, as they wrote it.

    Raises:
        UserError: Nobody answered it; `key` names its picture.
    """
    answers = told.get("answers")
    if not isinstance(answers, list) or not answers:
        raise UserError(
            f"{key}: the question {told.get('question', '')!r} has no `answers` of annotators; use a split that has "
            "them, made of the data set's questions and annotations (`trimline shard vqa`)"
        )
    return [str(answer).strip() for answer in answers]


def right_answer(classes: Classes, batch: ImageTextBatch, row: int) -> str:
    """What the data calls right of an instance, of VQA what most annotators said; empty where nobody says."""
    if classes.task in ANSWERING:
        given = Counter(map(str, batch.told[row].get("answers") or () if batch.told else ()))
        return given.most_common(1)[0][0] if given else ""
    label = int(batch.labels[row])
    return classes.names[label] if 0 <= label < len(classes.names) else ""


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Scores of the answers to one question, as they are written: 0.3, 0.6, 0.9 or 1 for 1, 2, 3 or more people.

    The list that they are looked up in is normalised, they are not: so does METER's reference (ViLT's write_vqa.py).

    >>> soft_scores(["yes", "Yes.", "no", "yes", "yes"])
    {'yes': 0.9, 'Yes.': 0.3, 'no': 0.3}
    """
    given = Counter(answers)
    return {answer: _SCORES[count] if count < len(_SCORES) else 1.0 for answer, count in given.items()}
