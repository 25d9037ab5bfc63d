"""Texts -> tokens: cleaned, then cut by a WordPiece tokenizer that is trained here or one loaded by path."""

import copy
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_described, write_atomic, write_json
from pipeline.data.cleaning import PLAIN, Cleaning, clean_text, cleaning_of

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# Whoever does not say which tokens have these roles has BERT's, RoBERTa's or CLIP's; CLIP masks nothing.
_USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>", "<|endoftext|>"),
    "cls_token": ("[CLS]", "<s>", "<|startoftext|>"),
    "sep_token": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>", "<|endoftext|>"),
}
_ALSO = {"cls_token": "bos_token", "sep_token": "eos_token"}
_FILE = "tokenizer.json"
_WORDS = "vocab.txt"
_MOST_WORDS = 1 << 16  # whose tokens are kept, about 10 MB
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How texts become tokens.

    Attributes:
        path: folder of a tokenizer as transformers keeps it, to be used as it is; None to train one on the data.
        vocab_size: most entries that a tokenizer trained on the data may have.
        max_words: a text is cut after so many words.
        clean: what becomes of texts first: ``albef`` makes them lower-case and takes out all punctuation, ``blip`` is
            BLIP's own cleaning, which leaves ``, ? ' - /`` where they are, ``none`` takes them as they are, on which
            weights of RoBERTa and CLIP were trained. In older files true is ``albef`` and false ``none``.
        end: whether texts have an end token ([SEP]), as all but ALBEF's own have; answers and captions that are told
            word by word have one always.
    """

    path: str | None = None
    vocab_size: int = 4096
    max_words: int = 30
    clean: Cleaning | bool = "albef"
    end: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "clean", cleaning_of(self.clean))
        if self.vocab_size <= len(_SPECIAL) or self.max_words < 1:
            raise UserError(
                f"vocab_size={self.vocab_size} must be above {len(_SPECIAL)}, and max_words={self.max_words} at least 1"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What a tokenizer depends on, in the words of runs from before `clean` had names and `end` was there."""
        told = {**asdict(self), "clean": PLAIN[cleaning_of(self.clean)]}
        return {key: value for key, value in told.items() if key != "end" or not self.end}

    def said_in(self, folder: Path) -> "TokenizerConfig":
        """The same, but read as a folder's files say, where they say it: tokenizers that were saved here do.

        Raises:
            UserError: They say what is none.
        """
        said = _described(folder)
        if "max_words" in said:  # older ones do not say `clean`, and mean ALBEF's; all texts had an end
            said = {"clean": TokenizerConfig.clean, "end": True, **said}
        return replace(self, **{key: said[key] for key in ("max_words", "clean", "end") if key in said})


_USUAL_TEXTS = TokenizerConfig()
_ENDS = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")
_JOINED = [*((f" {end}", end) for end in _ENDS[:4]), (" ' ", "'"), *((f" {end}", end) for end in _ENDS[4:])]
"""`clean_up_tokenization` of transformers, in its order."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds one that `Tokenizer.from_pretrained` reads."""
    return any((folder / name).exists() for name in (_FILE, _WORDS))


class Tokenizer:
    """Tokens of cleaned texts: [CLS] words [SEP] [PAD]..., of a fixed length; without [SEP] where texts have no end."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        specials: Sequence[str],
        max_words: int,
        clean: Cleaning | bool = TokenizerConfig.clean,
        end: bool = True,
    ) -> None:
        """Wraps a tokenizer.

        Args:
            inner: of the tokenizers library.
            specials: what stands for padding, unknown, begin, end and masked, in this order.
            max_words: a text is cut after so many words.
            clean: what becomes of texts first, as of `TokenizerConfig`.
            end: whether texts have an end token.

        Raises:
            UserError: the vocabulary lacks one of them, or there is no such cleaning.
        """
        ids = [inner.token_to_id(token) for token in specials]
        missing = [role for role, number in zip(_ROLES, ids, strict=True) if number is None]
        if missing:
            raise UserError(
                f"the tokenizer says of no token that it is its {', '.join(missing)}; name them in {_CONFIG}, as "
                f'"{missing[0]}": "<token>"'
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            number for number in ids if number is not None
        )
        self.max_words = max_words
        self.cleaning = cleaning_of(clean)
        self.end = end
        self.vocab_size: int = inner.get_vocab_size()
        self.prompt, self.question = "", False
        self._inner = inner
        self._specials = tuple(specials)
        self._added = [token.content for token in inner.get_added_tokens_decoder().values()]
        self._by_word = _splits_at_blanks(inner)
        self._words: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig, as_written: Iterable[str] = ()) -> "Tokenizer":
        """Learns a lower-case WordPiece vocabulary as BERT's, with [PAD]=0 [UNK]=1 [CLS]=2 [SEP]=3 [MASK]=4.

        The same texts, in any order, give the same vocabulary.

        Args:
            texts: cleaned as the configuration says.
            config: size, cleaning.
            as_written: texts such as answers, of which nothing is cleaned away.

        Raises:
            UserError: there is no text.
        """
        cleaning = cleaning_of(config.clean)
        cleaned = [clean_text(text, config.max_words, cleaning) for text in texts]
        cleaned = sorted([*cleaned, *(clean_text(text, config.max_words, "none").lower() for text in as_written)])
        letters = sorted(set("".join(cleaned)) - {" "})
        if not letters:
            raise UserError("no text to train a tokenizer on; the data needs captions or statements")
        # The trainer numbers letters inside words ("##a") as it meets them in a hash table, differently in
        # each process, and breaks ties by number. Naming them up front as special tokens fixes all numbers.
        inside = [f"##{letter}" for letter in letters]
        trainer = trainers.WordPieceTrainer(
            vocab_size=config.vocab_size, special_tokens=[*_SPECIAL, *inside], show_progress=False
        )
        learner = _bert_like({token: number for number, token in enumerate(_SPECIAL)})
        learner.train_from_iterator(cleaned, trainer)
        # Built anew from the vocabulary, because a special token would be found in any text that spells it.
        return cls(_bert_like(learner.get_vocab()), _SPECIAL, config.max_words, cleaning, config.end)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Reads what `save` wrote.

        Raises:
            UserError: the folder holds no tokenizer.
        """
        return cls.from_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        max_words: int | None = None,
        clean: Cleaning | bool | None = None,
        end: bool | None = None,
        usual: TokenizerConfig = _USUAL_TEXTS,
    ) -> "Tokenizer":
        """Reads a local folder as transformers keeps it: tokenizer.json, or BERT's vocab.txt.

        Args:
            folder: where the files are; nothing is downloaded.
            max_words: a text is cut after so many words; by default as saved, else as is usual.
            clean: what becomes of texts first; by default as saved, else as is usual.
            end: whether texts have an end token; by default as saved, else as is usual.
            usual: how texts are read where neither the caller nor the folder says.

        Raises:
            UserError: the folder holds no tokenizer, or one without the tokens that are needed.
        """
        folder = Path(folder)
        config, read = _described(folder), usual.said_in(folder)
        if (folder / _FILE).exists():
            inner = _read(folder / _FILE)
        elif (folder / _WORDS).exists():
            lines = (folder / _WORDS).read_text(encoding="utf-8").splitlines()
            inner = _bert_like({token: number for number, token in enumerate(lines)})
        else:
            raise UserError(f"{folder} holds neither {_FILE} nor {_WORDS}; give the folder of a tokenizer")
        specials = [_special(role, config, inner) for role in _ROLES]
        clean, end = read.clean if clean is None else clean, read.end if end is None else end
        return cls(inner, specials, max_words or read.max_words, clean, end)

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which PreTrainedTokenizerFast loads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        roles = dict(zip(_ROLES, self._specials, strict=True))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "max_words": self.max_words,
            "clean": PLAIN[self.cleaning],
            "end": self.end,
            **roles,
        }
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        begin, end = (roles["cls_token"], self.cls_id), (roles["sep_token"], self.sep_id)
        if not self.end:  # transformers puts around a text what stands here
            inner.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
        elif self._by_word:
            inner.post_processor = processors.BertProcessing(end, begin)
        write_json(folder / _CONFIG, config)
        write_atomic(folder / _FILE, inner.to_str(pretty=True))

    def behind(self, prompt: str) -> "Tokenizer":
        """The same with a prompt before every text."""
        prompted = copy.copy(self)
        prompted.prompt = clean_text(prompt, self.max_words, self.cleaning)
        return prompted

    def as_written(self) -> "Tokenizer":
        """The same without cleaning and with an end, for texts such as answers, in which "3:30" is not "330"."""
        raw = copy.copy(self)
        raw.cleaning, raw.end = "none", True
        return raw

    def of_questions(self) -> "Tokenizer":
        """The same for questions, which BLIP cleans otherwise than captions (`clean_text`)."""
        asking = copy.copy(self)
        asking.question = True
        return asking

    @property
    def digest(self) -> str:
        """Stands for the words, their numbers, how texts are cleaned, and whether they have an end."""
        words = sorted(self._inner.get_vocab().items())
        whole = [words, self._specials, self.max_words, PLAIN[self.cleaning], *([] if self.end else ["no end"])]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Cleans and tokenizes texts.

        Args:
            texts: B of them.
            max_tokens: L, with the tokens of begin and end; longer texts are cut before an end token.

        Returns:
            ids (B, L) int64 and mask (B, L) bool, True for all but padding.
        """
        ids = np.full((len(texts), max_tokens), self.pad_id, dtype=np.int64)
        lengths = np.zeros((len(texts), 1), dtype=np.int64)
        for row, text in enumerate(texts):
            told = clean_text(text, self.max_words, self.cleaning, self.question)
            words = self._encode(f"{self.prompt} {told}".strip() if self.prompt else told)
            tokens = [self.cls_id, *words[: self._room(max_tokens)], *self._ending]
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
        return torch.from_numpy(ids), torch.from_numpy(np.arange(max_tokens) < lengths)

    def cuts(self, text: str, max_tokens: int) -> bool:
        """Whether `encode` leaves out the end of a text."""
        whole = clean_text(text, sys.maxsize, self.cleaning, self.question)
        told = clean_text(text, self.max_words, self.cleaning, self.question)
        return told != whole or len(self._encode(f"{self.prompt} {told}".strip())) > self._room(max_tokens)

    @property
    def _ending(self) -> list[int]:
        return [self.sep_id] if self.end else []

    def _room(self, max_tokens: int) -> int:
        """Tokens of words that a text may have."""
        return max_tokens - 1 - len(self._ending)

    def reads(self, text: str) -> bool:
        """Whether anything of a text is left once it is cleaned."""
        return bool(clean_text(text, self.max_words, self.cleaning, self.question))

    def unknown_words(self, text: str) -> list[str]:
        """Words of a cleaned text that hold something that no token stands for, each once; it is read as [UNK].

        A word that falls into pieces is not among them: a vocabulary does not say which words it was learned from.
        """
        words = clean_text(text, self.max_words, self.cleaning, self.question).split()
        return [word for word in dict.fromkeys(words) if self.unk_id in self._encode(word)]

    def _encode(self, text: str) -> list[int]:
        """The tokens of a cleaned text, whose words stand one blank apart.

        Most words of captions are few, so a dictionary has their tokens in a fifth of the library's time. The
        library's batch call would start threads, which a forked worker must not and a core cannot use.
        """
        if not self._by_word or any(token in text for token in self._added):
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
            return ids
        tokens: list[int] = []
        for word in text.split(" "):
            known = self._words.get(word)
            if known is None:
                if len(self._words) >= _MOST_WORDS:
                    self._words.clear()
                known = self._words[word] = self._inner.encode(word, add_special_tokens=False).ids
            tokens += known
        return tokens

    def text(self, ids: Sequence[int]) -> str:
        """The words of tokens up to the first end token, marks joined to them as transformers joins them."""
        end = ids.index(self.sep_id) if self.sep_id in ids else len(ids)
        # The library skips only tokens that were added as special; those of a plain vocabulary are words to it.
        special = (self.pad_id, self.unk_id, self.cls_id, self.mask_id)
        said = [number for number in ids[:end] if number not in special]
        words: str = self._inner.decode(said, skip_special_tokens=True)
        for apart, joined in _JOINED:
            words = words.replace(apart, joined)
        return words

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """What tokens look like, for reports."""
        return [self._inner.id_to_token(int(number)) or "" for number in ids]


def _read(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{file} is no tokenizer ({error}); copy or export the folder again") from error


def _described(folder: Path) -> dict[str, Any]:
    return read_described(folder / _CONFIG) if (folder / _CONFIG).exists() else {}


def _special(role: str, config: Mapping[str, Any], inner: tokenizers.Tokenizer) -> str:
    """The token that has a role: as the folder says, else the usual one that the vocabulary knows."""
    said = config.get(role) or config.get(_ALSO.get(role, role))
    if said:
        return _token(said)
    return next((token for token in _USUAL[role] if inner.token_to_id(token) is not None), _USUAL[role][0])


def _token(value: Any) -> str:
    """A special token as transformers' configs state it: plain, or an object."""
    return str(value["content"] if isinstance(value, dict) else value)


def _splits_at_blanks(inner: tokenizers.Tokenizer) -> bool:
    """Whether a text's tokens are those of its words in turn, as they are of BERT's; not of byte-level tokenizers."""
    kinds = (models.WordPiece, pre_tokenizers.BertPreTokenizer, normalizers.BertNormalizer)
    parts = (inner.model, inner.pre_tokenizer, inner.normalizer)
    return all(isinstance(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _bert_like(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    if {"[CLS]", "[SEP]"} <= vocabulary.keys():
        ends = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
        inner.post_processor = processors.BertProcessing(*ends)
    return inner
