"""Texts -> tokens: ALBEF's cleaning, and a WordPiece tokenizer that is trained here or loaded by path."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_json, write_atomic, write_json

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_PUNCTUATION = re.compile(r"""[,.'!?"()*#:;~]""")
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
        clean: whether texts are made lower-case and lose their punctuation first, as ALBEF and BLIP do; weights of
            RoBERTa and CLIP were trained on texts as they are.
    """

    path: str | None = None
    vocab_size: int = 4096
    max_words: int = 30
    clean: bool = True

    def __post_init__(self) -> None:
        if self.vocab_size <= len(_SPECIAL) or self.max_words < 1:
            raise UserError(
                f"vocab_size={self.vocab_size} must be above {len(_SPECIAL)}, and max_words={self.max_words} at least 1"
            )


def clean_text(text: str, max_words: int, clean: bool = True) -> str:
    """ALBEF's cleaning: lower case, no punctuation, dashes and slashes as spaces; cut to `max_words` in any case."""
    if not clean:
        return " ".join(text.split()[:max_words])
    text = _PUNCTUATION.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:max_words])


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds one that `Tokenizer.from_pretrained` reads."""
    return any((folder / name).exists() for name in (_FILE, _WORDS))


class Tokenizer:
    """Tokens of cleaned texts: [CLS] words [SEP] [PAD]..., of a fixed length."""

    def __init__(
        self, inner: tokenizers.Tokenizer, specials: Sequence[str], max_words: int, clean: bool = True
    ) -> None:
        """Wraps a tokenizer.

        Args:
            inner: of the tokenizers library.
            specials: what stands for padding, unknown, begin, end and masked, in this order.
            max_words: a text is cut after so many words.
            clean: whether texts are cleaned as `clean_text` does.

        Raises:
            UserError: the vocabulary lacks one of them.
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
        self.clean = clean
        self.vocab_size: int = inner.get_vocab_size()
        self.prompt = ""
        self._inner = inner
        self._specials = tuple(specials)
        self._added = [token.content for token in inner.get_added_tokens_decoder().values()]
        self._by_word = _splits_at_blanks(inner)
        self._words: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
        """Learns a lower-case WordPiece vocabulary as BERT's, with [PAD]=0 [UNK]=1 [CLS]=2 [SEP]=3 [MASK]=4.

        The same texts, in any order, give the same vocabulary.

        Raises:
            UserError: there is no text.
        """
        cleaned = sorted(clean_text(text, config.max_words, config.clean) for text in texts)
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
        return cls(_bert_like(learner.get_vocab()), _SPECIAL, config.max_words, config.clean)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Reads what `save` wrote.

        Raises:
            UserError: the folder holds no tokenizer.
        """
        return cls.from_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, max_words: int | None = None, clean: bool | None = None
    ) -> "Tokenizer":
        """Reads a local folder as transformers keeps it: tokenizer.json, or BERT's vocab.txt.

        Args:
            folder: where the files are; nothing is downloaded.
            max_words: a text is cut after so many words; by default as saved, or 30.
            clean: whether texts are cleaned; by default as saved, or yes.

        Raises:
            UserError: the folder holds no tokenizer, or one without the tokens that are needed.
        """
        folder = Path(folder)
        config: dict[str, Any] = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else {}
        if (folder / _FILE).exists():
            inner = tokenizers.Tokenizer.from_file(str(folder / _FILE))
        elif (folder / _WORDS).exists():
            lines = (folder / _WORDS).read_text(encoding="utf-8").splitlines()
            inner = _bert_like({token: number for number, token in enumerate(lines)})
        else:
            raise UserError(f"{folder} holds neither {_FILE} nor {_WORDS}; give the folder of a tokenizer")
        specials = [_special(role, config, inner) for role in _ROLES]
        longest = max_words or config.get("max_words", TokenizerConfig.max_words)
        return cls(inner, specials, longest, config.get("clean", True) if clean is None else clean)

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which PreTrainedTokenizerFast loads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        roles = dict(zip(_ROLES, self._specials, strict=True))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "max_words": self.max_words,
            "clean": self.clean,
            **roles,
        }
        write_json(folder / _CONFIG, config)
        write_atomic(folder / _FILE, self._inner.to_str(pretty=True))

    def behind(self, prompt: str) -> "Tokenizer":
        """The same with a prompt before every text."""
        prompted = copy.copy(self)
        prompted.prompt = clean_text(prompt, self.max_words, self.clean)
        return prompted

    def as_written(self) -> "Tokenizer":
        """The same without cleaning, for texts such as answers, in which "3:30" is not "330"."""
        raw = copy.copy(self)
        raw.clean, raw._words = False, {}
        return raw

    @property
    def digest(self) -> str:
        """Stands for the words, their numbers, and how texts are cleaned."""
        words = sorted(self._inner.get_vocab().items())
        whole = [words, self._specials, self.max_words, self.clean]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Cleans and tokenizes texts.

        Args:
            texts: B of them.
            max_tokens: L, with the tokens of begin and end; longer texts are cut before the end token.

        Returns:
            ids (B, L) int64 and mask (B, L) bool, True for all but padding.
        """
        ids = np.full((len(texts), max_tokens), self.pad_id, dtype=np.int64)
        lengths = np.zeros((len(texts), 1), dtype=np.int64)
        for row, text in enumerate(texts):
            told = clean_text(text, self.max_words, self.clean)
            words = self._encode(f"{self.prompt} {told}".strip() if self.prompt else told)
            tokens = [self.cls_id, *words[: max_tokens - 2], self.sep_id]
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
        return torch.from_numpy(ids), torch.from_numpy(np.arange(max_tokens) < lengths)

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
        """The words of tokens up to the first end token."""
        end = ids.index(self.sep_id) if self.sep_id in ids else len(ids)
        words: str = self._inner.decode(list(ids[:end]), skip_special_tokens=True)
        return words

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """What tokens look like, for reports."""
        return [self._inner.id_to_token(int(number)) or "" for number in ids]


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
