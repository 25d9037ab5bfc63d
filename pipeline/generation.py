"""Texts word by word: beam search over a decoder that keeps what it has seen.

The rules are those of transformers' `generate` (5.x) with `early_stopping=False`, so that captions are those of the
models that are published there: a text's score is the sum of its words' log probabilities over the number of words to
the power of `length_penalty`; a candidate ends a text only where it is among the best K; an image is done once no beam
that goes on can beat the worst of its K texts. One beam is greedy search.

B images, K beams, C candidates, R rows (one for each beam of each image), L tokens so far, M the most, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.text import Tokenizer
from pipeline.limits import at_least
from pipeline.models.past import Past
from pipeline.models.schedule import TokenStream
from pipeline.precision import at_least_float32


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How texts are searched for; lengths count all tokens, those of the prompt and [DEC] too.

    Attributes:
        beams: K; 1 takes the likeliest word each time.
        min_length: Before it no text ends.
        max_length: At it all do.
        length_penalty: Above 0 favours longer texts, 0 shorter ones.
    """

    beams: int = 3
    min_length: int = 5
    max_length: int = 20
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, "beam", 1, "beams", "min_length")
        at_least(self, "beam", 0, "length_penalty")
        if self.max_length < self.min_length:
            raise UserError(f"beam.max_length={self.max_length} must be at least min_length={self.min_length}")


def check_beams(config: BeamConfig, words: int) -> None:
    """Refuses more beams than words to begin them with: each step chooses among twice as many.

    Args:
        config: The search.
        words: V, that the model knows.

    Raises:
        UserError: Naming both numbers.
    """
    if 2 * config.beams > words:
        raise UserError(
            f"beams={config.beams} are too many for a model that knows {words} words; {words // 2} is the most"
        )


_MOST_TOKENS = 4  # of a letter

PROMPT = "a picture of"
"""That BLIP's captions begin with (METHODS.md section 4); it is no part of what is given."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(BeamConfig):
    """How captions are searched for.

    Attributes:
        prompt: What each begins with.
    """

    prompt: str = PROMPT


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> Tensor:
    """(1, L) a prompt's tokens behind one that a decoder replaces by [DEC], without an end."""
    ids_1L, mask_1L = tokenizer.encode([prompt], 2 + len(prompt) * _MOST_TOKENS)
    return ids_1L[:, : int(mask_1L.sum()) - 1]


def check_prompt(config: CaptionConfig, given: int, max_tokens: int) -> None:
    """Refuses, before training, a prompt behind which there is no room for a word.

    Args:
        config: The search.
        given: Tokens of the prompt, [DEC] too; its words where there is no tokenizer yet, for they are never more.
        max_tokens: Of a caption in training, with prompt and end.

    Raises:
        UserError: Naming the lengths.
    """
    for key, most, wanted in (
        ("captions.max_length", config.max_length, given + 1),
        ("max_tokens", max_tokens, given + 2),
    ):
        if most < wanted:
            raise UserError(
                f"trim.{key}={most} leaves no room behind the {given} tokens of the prompt {config.prompt!r}; "
                f"make it {wanted} at least, or give a shorter trim.captions.prompt"
            )


class Speaker(Protocol):
    """A model that continues texts about images."""

    def next_scores(self, ids_RL: Tensor, image: TokenStream, past: Past) -> Tensor:
        """(R, V) scores of the word after each text; only what `past` does not have is computed.

        Args:
            ids_RL: The texts so far.
            image: What they tell of; its `queries` say how many rows share an image.
            past: Of these rows.
        """
        ...


@torch.no_grad()
def generate(model: Speaker, prompt_BL: Tensor, image: TokenStream, config: BeamConfig, end: int | None) -> Tensor:
    """The best text of each image.

    Args:
        model: In evaluation mode.
        prompt_BL: Token ids that the texts begin with, [DEC] first, without an end; (1, L) where all begin alike.
        image: B encoded images.
        config: The search.
        end: Id of the end token; None where only the length ends a text.

    Returns:
        (B, M) ids, prompt and end included; behind its end a text has only end tokens (0 where there is none).

    Raises:
        UserError: The prompt leaves no room.
    """
    if prompt_BL.shape[1] >= config.max_length:
        raise UserError(
            f"beam.max_length={config.max_length} leaves no word behind {prompt_BL.shape[1]} tokens of prompt; raise it"
        )
    search, past = _Search(prompt_BL.expand(len(image.cls), -1), config, end), Past()
    shown = replace(image, memo={})  # the image's keys and values are made once for all words and beams
    while True:
        ids_RL = search.ids_BKL.flatten(0, 1)
        rows_R = search.grow(at_least_float32(model.next_scores(ids_RL, shown, past)))
        if search.done:
            return search.told_BKM[:, 0]
        past.take(rows_R)
        shown = replace(shown, queries=config.beams)


class _Search:
    """Texts that grow, and the best of those that have ended.

    Attributes:
        ids_BKL: Texts that grow; one an image before the first word.
        told_BKM: Texts that have ended, best first.
        done: Whether no image's texts can become better.
    """

    def __init__(self, prompt_BL: Tensor, config: BeamConfig, end: int | None) -> None:
        images, beams, device = len(prompt_BL), config.beams, prompt_BL.device
        self.ids_BKL = prompt_BL[:, None]
        self.told_BKM = prompt_BL.new_full((images, beams, config.max_length), 0 if end is None else end)
        self.done = False
        self._config, self._end, self._prompt = config, end, prompt_BL.shape[1]
        self._sums_BK = torch.zeros(images, 1, device=device)
        self._told_scores_BK = torch.full((images, beams), -torch.inf, device=device)
        self._closed_B = torch.zeros(images, dtype=torch.bool, device=device)

    def grow(self, scores_RV: Tensor) -> Tensor:
        """Takes a word more; returns (R,) the rows that the new texts have grown from.

        Args:
            scores_RV: Of the word after each text.
        """
        images, beams, length = self.ids_BKL.shape
        words_BKV = scores_RV.log_softmax(-1).unflatten(0, (images, beams))
        if self._end is not None and length < self._config.min_length:
            words_BKV[..., self._end] = -torch.inf
        sums_BC, found_BC = (self._sums_BK[..., None] + words_BKV).flatten(1).topk(2 * self._config.beams)
        from_BC, word_BC = found_BC // scores_RV.shape[-1], found_BC % scores_RV.shape[-1]
        ids_BCL = torch.cat([_picked(self.ids_BKL, from_BC), word_BC[..., None]], -1)
        ends_BC = torch.full_like(word_BC, length + 1 >= self._config.max_length, dtype=torch.bool)
        if self._end is not None:
            ends_BC |= word_BC == self._end
        self._end_texts(ids_BCL, sums_BC, ends_BC)
        return self._go_on(ids_BCL, sums_BC.masked_fill(ends_BC, -torch.inf), from_BC, beams)

    def _score(self, sums: Tensor, length: int) -> Tensor:
        scores: Tensor = sums / float(length - self._prompt) ** self._config.length_penalty
        return scores

    def _end_texts(self, ids_BCL: Tensor, sums_BC: Tensor, ends_BC: Tensor) -> None:
        """Takes in the texts that have ended, of the best candidates only, and keeps the best of all."""
        beams, length = self._config.beams, ids_BCL.shape[-1]
        may_BC = ends_BC & ~self._closed_B[:, None]
        may_BC[:, beams:] = False
        scores_BC = self._score(sums_BC, length).masked_fill(~may_BC, -torch.inf)
        new_BCM = self.told_BKM[:, :1].expand(-1, ids_BCL.shape[1], -1).clone()
        new_BCM[..., :length] = ids_BCL
        new_BCM[..., length:] = 0 if self._end is None else self._end
        self._told_scores_BK, best_BK = torch.cat([self._told_scores_BK, scores_BC], 1).topk(beams)
        self.told_BKM = _picked(torch.cat([self.told_BKM, new_BCM], 1), best_BK)

    def _go_on(self, ids_BCL: Tensor, sums_BC: Tensor, from_BC: Tensor, beams_before: int) -> Tensor:
        """Goes on with the best that have not ended."""
        self._sums_BK, best_BK = sums_BC.topk(self._config.beams)
        self.ids_BKL = _picked(ids_BCL, best_BK)
        length = self.ids_BKL.shape[-1]
        worst_B = self._told_scores_BK[:, -1]
        can_win_B = self._score(self._sums_BK[:, 0], length) > worst_B
        if self._config.beams == 1:
            can_win_B = worst_B.isneginf()  # greedy search ends with the first end
        self._closed_B |= ~can_win_B
        self.done = bool(self._closed_B.all()) or length >= self._config.max_length
        first_B1 = torch.arange(len(from_BC), device=from_BC.device)[:, None] * beams_before
        return (first_B1 + from_BC.gather(1, best_BK)).flatten()


def _picked(texts_BKL: Tensor, which_BC: Tensor) -> Tensor:
    """(B, C, L) chosen texts of each image."""
    return texts_BKL.gather(1, which_BC[..., None].expand(-1, -1, texts_BKL.shape[-1]))
