"""VQA by an answer decoder (BLIP, arXiv 2201.12086): it learns what annotators said, and ranks a list of answers.

The question reads the picture, the decoder reads the question. In training every answer of the annotators counts by how
many of them gave it; then the answers of the list whose first word is likeliest are scored whole.

B questions, A answers of the list or of a batch, L tokens, K answers that are scored whole.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer
from pipeline.measure.flops import StepCounts, linear_macs, schedule_macs
from pipeline.metrics.vqa import normalised
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.blip_tasks import BlipAnswering
from pipeline.models.schedule import Intervention, Step, TokenStream, site
from pipeline.tasks.answering import answer_losses, answering_loss, rank
from pipeline.tasks.classes import AnswerList, annotated_answers
from pipeline.tasks.classification import ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.tasks.task import Losses
from pipeline.trimming.cost import CostModel, Units
from pipeline.trimming.trimmers import block_size

_LONGEST = 30  # tokens of an answer


@dataclass(frozen=True)
class RankedAnswers(AnswerList):
    """Answers that a decoder ranks; a score is minus the answer's loss.

    Attributes:
        tokens: Of each answer, begin and end included.
        candidates: K.
    """

    tokens: tuple[tuple[int, ...], ...] = ()
    candidates: int = 128

    @classmethod
    def of(cls, names: Sequence[str], tokenizer: Tokenizer, candidates: int) -> "RankedAnswers":
        """Of a list, with a model's words."""
        ids_AL, mask_AL = tokenizer.encode(names, _LONGEST)
        tokens = tuple(tuple(ids[mask].tolist()) for ids, mask in zip(ids_AL, mask_AL, strict=True))
        return cls("vqa_generative", tuple(names), tokens, candidates)

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """(A, L) ids and mask."""
        lengths_A = torch.tensor([len(tokens) for tokens in self.tokens])
        ids_AL = nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in self.tokens], batch_first=True)
        return ids_AL, torch.arange(ids_AL.shape[1]) < lengths_A[:, None]

    def probabilities(self, scores_BA: Tensor) -> Tensor:
        """Softmax over the answers that were scored whole."""
        return scores_BA.softmax(-1)


class Taught(NamedTuple):
    """Annotators' answers to a batch of questions.

    Attributes:
        ids_AL: Their tokens.
        mask_AL: True at real ones.
        rows_A: Which question each belongs to.
        weights_A: Share of the question's annotators who gave it.
    """

    ids_AL: Tensor
    mask_AL: Tensor
    rows_A: Tensor
    weights_A: Tensor


def answering_of(backbone: Backbone) -> BlipAnswering:
    """Question encoder and answer decoder out of a pre-trained BLIP; encoders are shared and not copied.

    The decoder begins as the one that told of pictures; where questions are not as wide as image tokens its keys and
    values of what it reads begin from nothing.

    Raises:
        UserError: It is another backbone.
    """
    if isinstance(backbone, BlipAnswering):
        return backbone
    if not isinstance(backbone, Blip):
        raise UserError(
            f"vqa_generative wants a decoder, which {backbone.config.backbone} has not; pre-train with "
            "--model.backbone blip, or choose trim.task=vqa"
        )
    answering = BlipAnswering(backbone.config)
    answering.visual_encoder, answering.text_encoder = backbone.visual_encoder, backbone.text_encoder
    own, given = answering.text_decoder.state_dict(), backbone.text_decoder.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if tensor.shape == own[name].shape}
    answering.text_decoder.load_state_dict(fitting, strict=False)
    return answering.train(backbone.training)


class AnsweringModel(ClassificationModel):
    """BLIP's question answering, untrimmed.

    Args:
        backbone: BLIP, or its question answering.
        classes: The answers.

    Raises:
        UserError: The backbone has no decoder.
    """

    backbone: BlipAnswering
    classes: RankedAnswers

    def __init__(self, backbone: Backbone, classes: RankedAnswers) -> None:
        super().__init__(answering_of(backbone), None, classes=classes)
        self.longest = min(_LONGEST, backbone.config.text.longest)

    def make_head(self) -> nn.Module:
        """None: answers are the decoder's."""
        return nn.Identity()

    def ask(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> TokenStream:
        """The questions' states; their keys and values are made once."""
        question = self.backbone.ask(ids_BL, mask_BL, self.backbone.encode_image(pixels))
        return TokenStream(question.x, question.present, memo={})

    def forward(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, taught: Taught) -> Tensor:  # type: ignore[override]
        """(A,) losses of the annotators' answers."""
        question = self.ask(pixels, ids_BL, mask_BL)
        return answer_losses(self.backbone, taught.ids_AL, taught.mask_AL, question, taught.rows_A)

    def classify(self, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor, interventions: list[Intervention]) -> Tensor:
        """(B, A) minus the losses of the answers that were scored whole; the lowest number of the others."""
        assert not interventions, "an answer decoder is not trimmed"
        ids_AL, mask_AL = (part[:, : self.longest].to(pixels.device) for part in self.classes.padded)
        found = rank(self.backbone, ids_AL, mask_AL, self.ask(pixels, ids_BL, mask_BL), self.classes.candidates)
        scores_BK = found.scores_BK
        none_BA = scores_BK.new_full((len(ids_BL), len(ids_AL)), torch.finfo(scores_BK.dtype).min)
        return none_BA.scatter(1, found.kept_BK, scores_BK)

    def cost_model(self) -> CostModel:
        """Cost of ranking the list."""
        return RankingCost(self, min(self.classes.candidates, len(self.classes.names)))

    def training_cost_model(self) -> CostModel:
        """Cost of learning one answer."""
        return RankingCost(self, 1)


class RankingCost(CostModel):
    """MACs of a question's way through the encoders, and of the answers that are ranked: of mean length each.

    Args:
        model: Question encoder, answer decoder and the list.
        answers: How many are scored whole.
    """

    def __init__(self, model: AnsweringModel, answers: int) -> None:
        super().__init__(model.backbone, model.cls_head, None)
        decoder, lengths = model.backbone.text_decoder, [len(tokens) for tokens in model.classes.tokens]
        self.decoder = decoder.bert.steps("decoder", slice(None), ("source",))
        self.answers = answers
        self.length = sum(lengths) / len(lengths)
        # What is told of an answer is all but its first token; and the first words of all are scored once.
        words = linear_macs(decoder.cls.predictions.transform) + decoder.config.width * decoder.config.vocab_size
        self.fixed += round(words * (1 + self.answers * self.length))

    def full(self, units: Units) -> Tensor:
        """(B,) MACs."""
        image_B, text_B = 1.0 + units.vision, 1.0 + units.text
        rows_B = torch.full_like(text_B, 1 + self.answers * self.length)
        pairs_B = torch.full_like(text_B, 1 + self.answers * self.length**2)
        none_B = torch.zeros_like(text_B)
        vision = _macs(self.model.visual_encoder.steps, image_B, none_B, None)
        fusion = _macs(self.model.fusion_steps, text_B, image_B, None)
        return self.fixed + vision + fusion + _macs(self.decoder, rows_B, text_B, pairs_B)


def _macs(steps: Sequence[Step], tokens_B: Tensor, source_B: Tensor, pairs_B: Tensor | None) -> Tensor:
    """(B,) MACs of steps with all heads, each layer with the same tokens."""
    counts = {}
    for step in steps:
        for advance in step.advances:
            heads_B = torch.full_like(tokens_B, block_size(advance)[1])
            counts[site(step, advance)] = StepCounts(tokens_B, source_B, heads_B, heads_B, None, pairs_B)
    return schedule_macs(steps, counts)


class AnsweringTask(ClassificationTask):
    """Fine-tuning of the answer decoder on what annotators said.

    Args:
        model: To train.
        tokenizer: Of its words.
        normalise: Maps uint8 pixels to the model's input.
        typical: Units of typical instances.
    """

    def __init__(
        self, model: AnsweringModel, tokenizer: Tokenizer, normalise: Callable[[Tensor], Tensor], typical: Units
    ) -> None:
        super().__init__(model, normalise, 1.0, SmartTrimConfig(), typical)
        self.tokenizer, self.longest = tokenizer, model.longest

    def losses(self, forward: Callable[..., Any], batch: ImageTextBatch, progress: float) -> Losses:
        """Sum of the answers' losses by their weights, mean over questions."""
        taught = self.taught(batch)
        losses_A: Tensor = forward(self.normalise(batch.pixels), batch.token_ids, batch.token_mask, taught)
        loss = answering_loss(losses_A, taught.weights_A, len(batch))
        return Losses(loss, {"task": loss})

    def taught(self, batch: ImageTextBatch) -> Taught:
        """Each different answer of a question's annotators.

        Raises:
            UserError: Nobody answered a question.
        """
        texts: list[str] = []
        rows: list[int] = []
        weights: list[float] = []
        for row, told in enumerate(batch.told):
            given = Counter(normalised(answer) for answer in annotated_answers(told, batch.keys[row]))
            texts += list(given)
            rows += [row] * len(given)
            weights += [count / given.total() for count in given.values()]
        ids_AL, mask_AL = self.tokenizer.encode(texts, self.longest)
        length, device = int(mask_AL.sum(1).max()), batch.token_ids.device
        parts = ids_AL[:, :length], mask_AL[:, :length], torch.tensor(rows), torch.tensor(weights)
        return Taught(*(part.to(device) for part in parts))
