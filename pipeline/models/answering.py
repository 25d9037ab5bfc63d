"""Question answering by a decoder: the question reads the picture, an answer decoder reads the question (ALBEF, BLIP).

B batch, A answers of all questions, L tokens, M words to tell of them, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.models.backbone import Backbone
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import Intervention, Step, TokenStream, execute
from pipeline.models.text import TextTower, text_block


def decoder_steps(decoder: TextTower) -> list[Step]:
    """A decoder's layers, that tell of the stream ``source``."""
    return decoder.bert.steps("decoder", slice(None), ("source",), tells=True)


def decode(
    decoder: TextTower,
    ids_BL: Tensor,
    mask_BL: Tensor,
    source: TokenStream,
    interventions: Sequence[Intervention] = (),
) -> TokenStream:
    """A decoder's last states, packed where methods pack; position t has seen the tokens up to t and the source.

    Args:
        decoder: Layers with cross-attention.
        ids_BL: Texts as the decoder reads them.
        mask_BL: True at real tokens.
        source: What it tells of: an image, or a question that has seen one.
        interventions: Methods that act on its layers.
    """
    text = decoder.bert.embed(ids_BL, mask_BL, causal=True)
    return execute(decoder_steps(decoder), {"text": text, "source": source}, interventions)["text"]


class Answering(Backbone):
    """What encoders become with an answer decoder, mixed into the class of their backbone."""

    text_decoder: TextTower

    def add_decoder(self, config: ModelConfig, layers: int) -> None:
        """Make the decoder, whose layers read the question."""
        text = config.text
        self.text_decoder = TextTower(text, [text_block(text, text.width) for _ in range(layers)])

    @property
    def schedule(self) -> list[Step]:
        """The encoders', then the decoder's, which reads the question."""
        return [*super().schedule, *decoder_steps(self.text_decoder)]

    def begin_answer(self, ids_AL: Tensor) -> Tensor:
        """Answers as the decoder reads them; the first token is one that stands before every answer."""
        return ids_AL

    def ask(
        self,
        text: TokenStream | None,
        ids_BL: Tensor,
        mask_BL: Tensor,
        image: TokenStream,
        interventions: Sequence[Intervention] = (),
    ) -> TokenStream:
        """The question's states; padding stays marked and is never answered from.

        Args:
            text: The encoded question, where fusion goes on from it (`begin_fusion`).
            ids_BL: Questions.
            mask_BL: True at real tokens.
            image: From `encode_image`.
            interventions: Methods that act on the fusion layers.
        """
        return self.fuse(self.begin_fusion(text, ids_BL, mask_BL), image, interventions).text

    def answer(
        self,
        ids_AL: Tensor,
        mask_AL: Tensor,
        question: TokenStream,
        rows_A: Tensor,
        interventions: Sequence[Intervention] = (),
    ) -> Tensor:
        """(M, V) scores of the words of answers, each behind the right ones: one answer's after the other's.

        Words are scored nowhere else, and an answer's last token is told but never read.

        Args:
            ids_AL: Answers, with the token that begins them.
            mask_AL: True at real tokens.
            question: From `ask`.
            rows_A: Which question each answer belongs to, rising; each question has one, unless `first_words` has had
                methods decide.
            interventions: Methods that act on the decoder's layers.
        """
        return self._words_behind(ids_AL[:, :-1], mask_AL[:, 1:].bool(), question, rows_A, interventions)

    def first_words(self, question: TokenStream, begin: int, interventions: Sequence[Intervention] = ()) -> Tensor:
        """(B, V) scores of an answer's first word.

        Args:
            question: From `ask`.
            begin: The token that begins answers.
            interventions: Methods that act on the decoder's layers.
        """
        device, count = question.x.device, len(question.cls)
        begin_B1, rows_B = torch.full((count, 1), begin, device=device), torch.arange(count, device=device)
        every_B1 = torch.ones_like(begin_B1, dtype=torch.bool)
        return self._words_behind(begin_B1, every_B1, question, rows_B, interventions)

    def _words_behind(
        self,
        read_AL: Tensor,
        mask_AL: Tensor,
        question: TokenStream,
        rows_A: Tensor,
        interventions: Sequence[Intervention],
    ) -> Tensor:
        """(M, V) scores of the word behind each token that is there."""
        source = replace(question, rows=rows_A)
        told = decode(self.text_decoder, self.begin_answer(read_AL), mask_AL, source, interventions)
        return self.text_decoder.word_scores(told.x[mask_AL] if told.offsets is None else told.x)
