"""Question answering by a decoder: losses of answers, and the ranking of candidates.

B questions, A answers of all of them, L tokens, C candidate answers, K kept ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.albef import AlbefAnswering
from pipeline.models.answering import Answering
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.objectives.lm import LABEL_SMOOTHING, text_losses

_AT_ONCE = 1024  # answers; their words' scores take 500 MB with BERT's vocabulary and four tokens each


@dataclass(frozen=True)
class Way:
    """How a project's decoder learns answers and ranks them.

    Attributes:
        smoothing: Of the labels of words, in training and in ranking.
        chances: How often the probability of the first word, by which candidates are chosen, counts in their scores
            beside the loss of all words.
    """

    smoothing: float
    chances: int


ALBEFS = Way(smoothing=0.0, chances=1)
"""Its `rank_answer` adds the log probability of the first word to that of all words."""
BLIPS = Way(smoothing=LABEL_SMOOTHING, chances=0)


def way_of(model: Answering) -> Way:
    """The one of the project that the model is of."""
    return ALBEFS if isinstance(model, AlbefAnswering) else BLIPS


@dataclass(frozen=True)
class Ranking:
    """The best candidates of each question.

    Attributes:
        kept_BK: Numbers of the candidates whose first word is likeliest, likeliest first.
        scores_BK: Minus the loss of each of them, with what the first word counts more (`Way`).
        best_B: Number of the one with the highest score.
    """

    kept_BK: Tensor
    scores_BK: Tensor
    best_B: Tensor


def answer_losses(
    model: Answering,
    ids_AL: Tensor,
    mask_AL: Tensor,
    question: TokenStream,
    rows_A: Tensor,
    interventions: Sequence[Intervention] = (),
) -> Tensor:
    """(A,) smoothed loss of each answer, summed over its words; arguments as in `Answering.answer`."""
    scores_MV = model.answer(ids_AL, mask_AL, question, rows_A, interventions)
    return text_losses(scores_MV, ids_AL, mask_AL, way_of(model).smoothing)


def answering_loss(losses_A: Tensor, weights_A: Tensor, questions: int) -> Tensor:
    """Sum of the answers' losses by their weights, over the number of questions."""
    return (losses_A * weights_A).sum() / questions


def rank(
    model: Answering,
    ids_CL: Tensor,
    mask_CL: Tensor,
    question: TokenStream,
    keep: int,
    interventions: Sequence[Intervention] = (),
) -> Ranking:
    """Which of the same candidates answers each question best.

    Args:
        model: Question encoder and answer decoder.
        ids_CL: Candidate answers.
        mask_CL: True at real tokens.
        question: From `Answering.ask`.
        keep: K, how many to score whole; they are chosen by their first word. Not many are scored at once, whatever the
            numbers.
        interventions: Methods that act on the decoder's layers.
    """
    chance_BC = model.first_words(question, int(ids_CL[0, 0]), interventions).softmax(-1)[:, ids_CL[:, 1]]
    chance_BK, kept_BK = chance_BC.topk(min(keep, len(ids_CL)), 1)
    chosen = kept_BK.flatten()
    rows = torch.arange(len(kept_BK), device=chosen.device).repeat_interleave(kept_BK.shape[1])
    blocks = _of_one_length(mask_CL.sum(1)[chosen])

    def block_losses(block: Tensor) -> Tensor:
        some, own = chosen[block], rows[block]
        length = int(mask_CL[some[0]].sum())
        return answer_losses(model, ids_CL[some, :length], mask_CL[some, :length], question, own, interventions)

    losses = torch.cat([block_losses(block) for block in blocks])
    scores_BK = -losses[torch.cat(blocks).argsort()].view_as(kept_BK)
    if counted := way_of(model).chances:
        scores_BK = scores_BK + counted * chance_BK.log()
    best_B = kept_BK.gather(1, scores_BK.argmax(1, keepdim=True))[:, 0]
    return Ranking(kept_BK, scores_BK, best_B)


def _of_one_length(lengths_A: Tensor) -> list[Tensor]:
    """Numbers of answers in blocks of one length, so that no padding is computed on; rising within each."""
    order_A = lengths_A.argsort(stable=True)
    counts = lengths_A.unique(return_counts=True)[1].tolist()
    return [block for alike in order_A.split(counts) for block in alike.split(_AT_ONCE)]
