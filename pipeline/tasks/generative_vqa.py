"""VQA by an answer decoder (ALBEF, BLIP): it learns what annotators said, and ranks a list of answers.

The question reads the picture, the decoder reads the question. In training every answer of the annotators counts by how
many of them gave it; then the answers of the list whose first word is likeliest are scored whole.

B questions, A answers of the list or of a batch, L tokens, K answers that are scored whole.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer
from pipeline.measure.flops import AnswerRanking, linear_macs
from pipeline.models.answering import Answering
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.objectives.lm import LABEL_SMOOTHING, next_words
from pipeline.precision import at_least_float32
from pipeline.tasks.answering import answering_loss, rank, way_of
from pipeline.tasks.classes import AnswerList, annotated_answers, word_divergence
from pipeline.tasks.classification import Answers, ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.decoders import answering_of
from pipeline.tasks.task import Losses
from pipeline.trimming.cost import CostModel, Units, units_of
from pipeline.trimming.smarttrim import Gate, threshold
from pipeline.trimming.trimmers import Policy, TrimmerConfig

log = logging.getLogger(__name__)
_LONGEST = 30  # tokens of an answer


@dataclass(frozen=True)
class RankedAnswers(AnswerList):
    """Answers that a decoder ranks. What it says is a score of each, minus the answer's loss; what it learns are words.

    Attributes:
        tokens: Of each answer, begin and end included.
        candidates: K.
        smoothing: Of the labels of words; the model says its project's.
    """

    tokens: tuple[tuple[int, ...], ...] = ()
    candidates: int = 128
    smoothing: float = field(default=LABEL_SMOOTHING, compare=False)  # lists are alike whoever learns them

    @classmethod
    def of(cls, names: Sequence[str], tokenizer: Tokenizer, candidates: int) -> "RankedAnswers":
        """Of a list, with the words of a model that learned answers by this tokenizer; what has the same ones is told.

        Answers are read as they are written (`Tokenizer.as_written`), but for models from before that was so.
        """
        ids_AL, mask_AL = tokenizer.encode(names, _LONGEST)
        tokens = tuple(tuple(ids[mask].tolist()) for ids, mask in zip(ids_AL, mask_AL, strict=True))
        first = dict(zip(reversed(tokens), reversed(names), strict=True))
        if same := [(name, first[own]) for name, own in zip(names, tokens, strict=True) if first[own] != name]:
            told = "answers that have the tokens of others, so that nothing tells them apart: %d, such as %r and %r"
            log.warning(told, len(same), *same[0])
        return cls("vqa_generative", tuple(names), tokens, candidates)

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """(A, L) ids and mask."""
        lengths_A = torch.tensor([len(tokens) for tokens in self.tokens])
        ids_AL = nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in self.tokens], batch_first=True)
        return ids_AL, torch.arange(ids_AL.shape[1]) < lengths_A[:, None]

    def loss(self, scores_BA: Tensor, targets: "Taught") -> Tensor:  # type: ignore[override]  # of (M, V) words
        """Smoothed loss of the annotators' answers, summed over their words by their weights, mean over questions."""
        target_M, weights_M = targets.words
        losses_M = F.cross_entropy(scores_BA, target_M, reduction="none", label_smoothing=self.smoothing)
        return answering_loss(losses_M, weights_M, targets.questions)

    def accuracy(self, scores_BA: Tensor, targets: "Taught") -> Tensor:  # type: ignore[override]
        """Share of words that are told rightly behind the right ones."""
        return (scores_BA.detach().argmax(1) == targets.words[0]).float().mean()

    def divergence(self, trimmed_BA: Tensor, full_BA: Tensor) -> Tensor:
        """Of the vocabulary's distributions at (M, V) words, mean over the words of all processes."""
        return word_divergence(trimmed_BA, full_BA)

    def probabilities(self, scores_BA: Tensor) -> Tensor:
        """Softmax over the answers that were scored whole."""
        return scores_BA.softmax(-1)


class Taught(NamedTuple):
    """Annotators' answers to a batch of questions.

    Attributes:
        ids_AL: Their tokens.
        mask_AL: True at real ones.
        rows_A: Which question each belongs to, rising; each question has one.
        weights_A: Share of the question's annotators who gave it.
        questions: B.
    """

    ids_AL: Tensor
    mask_AL: Tensor
    rows_A: Tensor
    weights_A: Tensor
    questions: int

    @property
    def words(self) -> tuple[Tensor, Tensor]:
        """(M,) tokens to tell, and the weights of their answers."""
        told_AL = next_words(self.mask_AL)
        return self.ids_AL[told_AL.roll(1, 1)], self.weights_A[told_AL.nonzero()[:, 0]]


class AnsweringModel(ClassificationModel):
    """Question answering by a decoder, and trimmers if it is to be trimmed.

    Where the text-only CLS guides the picture's trimmers, a trimmed BLIP encodes the question once more.

    Args:
        backbone: ALBEF or BLIP, or its question answering; shared, not copied.
        trimmers: Sizes of what trims; None for the full model.
        policy: Who decides on tokens and heads.
        classes: The answers.

    Raises:
        UserError: The backbone has no decoder.
    """

    backbone: Answering
    classes: RankedAnswers

    def __init__(
        self, backbone: Backbone, trimmers: TrimmerConfig | None, policy: Policy, classes: RankedAnswers
    ) -> None:
        answering = answering_of(backbone)
        told = replace(classes, smoothing=way_of(answering).smoothing)
        super().__init__(answering, trimmers, policy, classes=told)
        self.longest = min(_LONGEST, backbone.config.text.longest)

    def make_head(self) -> nn.Module:
        """None: answers are the decoder's."""
        return nn.Identity()

    def ask(
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: Sequence[Intervention]
    ) -> TokenStream:
        """The questions' states; their keys and values are made once."""
        text = self.encode_asked_text(ids_BL, mask_BL, interventions)
        image = self.backbone.encode_image(pixels, interventions, text)
        return replace(self.backbone.ask(text, ids_BL, mask_BL, image, interventions), memo={})

    def forward(  # type: ignore[override]  # learns from what the base does not know
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, gate: Gate | None, full: bool, taught: Taught
    ) -> Answers:
        """(M, V) scores of the annotators' words by the trimmed model, and by the full one; see the base."""
        inputs = pixels, ids_BL, mask_BL
        full_MV = self._told(*inputs, taught, []) if full or self.trimmers is None else None
        trimming = None if gate is None else self.trimming(ids_BL, mask_BL, gate)
        if trimming is None:
            return Answers(full_MV)
        return Answers(full_MV, self._told(*inputs, taught, [trimming]), trimming.decisions)

    def _told(
        self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, taught: Taught, methods: list[Intervention]
    ) -> Tensor:
        question = self.ask(pixels, ids_BL, mask_BL, methods)
        return at_least_float32(self.backbone.answer(taught.ids_AL, taught.mask_AL, question, taught.rows_A, methods))

    def classify(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]) -> Tensor:
        """(B, A) minus the losses of the answers that were scored whole; the lowest number of the others."""
        ids_AL, mask_AL = (part[:, : self.longest].to(pixels.device) for part in self.classes.padded)
        question = self.ask(pixels, ids_BL, mask_BL, interventions)
        found = rank(self.backbone, ids_AL, mask_AL, question, self.classes.candidates, interventions)
        scores_BK = at_least_float32(found.scores_BK)
        none_BA = scores_BK.new_full((len(ids_BL), len(ids_AL)), torch.finfo(scores_BK.dtype).min)
        return none_BA.scatter(1, found.kept_BK, scores_BK)

    @torch.no_grad()
    def cost_shares(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """See the base; a decoder decides in its first pass."""
        trimming, units = self.trimming(ids_BL, mask_BL, threshold), units_of(self.backbone, mask_BL)
        methods: list[Intervention] = [] if trimming is None else [trimming]
        self.backbone.first_words(self.ask(pixels, ids_BL, mask_BL, methods), self.classes.tokens[0][0], methods)
        decisions = {} if trimming is None else trimming.decisions
        return self.macs(decisions, units) / self.full_macs(units)

    def cost_model(self) -> CostModel:
        """Cost of ranking the list."""
        return self._cost(min(self.classes.candidates, len(self.classes.names)))

    def training_cost_model(self) -> CostModel:
        """Cost of learning one answer."""
        return self._cost(1)

    def _cost(self, answers: int) -> CostModel:
        decoder = self.backbone.text_decoder
        read = [min(len(tokens), self.longest) - 1 for tokens in self.classes.tokens]
        length, square = sum(read) / len(read), sum(tokens**2 for tokens in read) / len(read)
        words = linear_macs(decoder.cls.predictions.transform) + decoder.config.width * decoder.config.vocab_size
        ranking = AnswerRanking(answers, length, square, words)
        return CostModel(self.backbone, self.cls_head, self.trimmers, speech=ranking)


class AnsweringTask(ClassificationTask):
    """Fine-tuning of the answer decoder on what annotators said.

    Args:
        model: To train.
        tokenizer: Of its words.
        normalise: Maps uint8 pixels to the model's input.
        target: Wanted ratio of MACs; 1 trains the full model.
        smarttrim: Constants.
        typical: Units of typical instances.
    """

    classes: RankedAnswers

    def __init__(
        self,
        model: AnsweringModel,
        tokenizer: Tokenizer,
        normalise: Callable[[Tensor], Tensor],
        target: float,
        smarttrim: SmartTrimConfig,
        typical: Units,
    ) -> None:
        super().__init__(model, normalise, target, smarttrim, typical)
        self.tokenizer, self.longest = tokenizer.as_written(), model.longest

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """As of other tasks, on the words of the annotators' answers."""
        taught, gate, full = self.taught(batch), self.gate(progress), self.config.distill_weight > 0
        inputs = self.normalise(batch.pixels), batch.token_ids, batch.token_mask
        return self.losses_of(forward(*inputs, gate, full, taught), taught, batch, progress)

    def taught(self, batch: ImageTextBatch) -> Taught:
        """Each different answer of a question's annotators, as it is written (ALBEF's and BLIP's reference).

        Raises:
            UserError: Nobody answered a question.
        """
        texts: list[str] = []
        rows: list[int] = []
        weights: list[float] = []
        for row, told in enumerate(batch.told):
            given = Counter(annotated_answers(told, batch.keys[row]))
            texts += list(given)
            rows += [row] * len(given)
            weights += [count / given.total() for count in given.values()]
        ids_AL, mask_AL = self.tokenizer.encode(texts, self.longest)
        length, device = int(mask_AL.sum(1).max()), batch.token_ids.device
        return Taught(
            ids_AL[:, :length].to(device),
            mask_AL[:, :length].to(device),
            torch.tensor(rows, device=device),
            torch.tensor(weights, device=device),
            len(batch),
        )
