import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from data_prep.errors import UserError
from pipeline.data.cleaning import Cleaning, clean_text
from pipeline.data.text import Tokenizer, TokenizerConfig

TEXTS = ["A small red circle.", "Two blue squares; one is large!", "no circle touches the box's edge"] * 3
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BY_WORD = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=300))


def test_a_trained_tokenizer_frames_cuts_and_pads() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=300))
    ids, mask = tokenizer.encode(["A RED circle", "", "one two blue squares is large edge"], 6)
    assert tokenizer.tokens(ids[0]) == ["[CLS]", "a", "red", "circle", "[SEP]", "[PAD]"]
    assert tokenizer.tokens(ids[1])[:3] == ["[CLS]", "[SEP]", "[PAD]"]
    assert tokenizer.tokens(ids[2]) == ["[CLS]", "one", "two", "blue", "squares", "[SEP]"]
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [5, 2, 6]
    special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert special == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size > int(ids.max())


def test_a_text_that_spells_a_special_token_does_not_become_one() -> None:
    tokenizer = Tokenizer.train(["##a [MASK] mask a", "cls"], TokenizerConfig(vocab_size=100))
    ids, _ = tokenizer.encode(["[MASK] ##a [SEP]"], 12)
    assert tokenizer.mask_id not in ids
    assert (ids == tokenizer.sep_id).sum() == 1


def test_words_are_found_by_their_pieces() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=40))
    ids, _ = tokenizer.encode(["circle"], 12)
    pieces = [t for t in tokenizer.tokens(ids[0]) if t not in ("[CLS]", "[SEP]", "[PAD]")]
    assert len(pieces) > 1
    assert "".join(piece.removeprefix("##") for piece in pieces) == "circle"


def test_special_tokens_are_no_words_of_what_is_told() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=120))
    red, blue = (tokenizer.encode([word], 3)[0][0, 1].item() for word in ("red", "blue"))
    ids = [tokenizer.cls_id, red, tokenizer.unk_id, blue, tokenizer.pad_id, tokenizer.mask_id, tokenizer.sep_id, red]
    assert tokenizer.text(ids) == "red blue"


def test_training_gives_the_same_for_any_order_of_texts_and_each_time(tmp_path: Path) -> None:
    # The library's own trainer numbers pieces differently each time, even in one process.
    files = []
    for number, texts in enumerate([TEXTS, TEXTS[::-1]] * 4):
        Tokenizer.train(texts, TokenizerConfig(vocab_size=120)).save(tmp_path / str(number))
        files.append((tmp_path / str(number) / "tokenizer.json").read_bytes())
    assert len(set(files)) == 1


def test_a_saved_tokenizer_loads_the_same(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=120, max_words=4))
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.max_words == 4
    for one, two in zip(tokenizer.encode(TEXTS, 20), again.encode(TEXTS, 20), strict=True):
        assert (one == two).all()


def test_transformers_loads_a_saved_tokenizer(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=120))
    tokenizer.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    text = "two blue squares"
    ids, mask = tokenizer.encode([text], 20)
    assert theirs(text).input_ids == ids[0][mask[0]].tolist()
    assert theirs.mask_token_id == tokenizer.mask_id and theirs.pad_token_id == tokenizer.pad_id


def test_texts_without_an_end_have_one_more_word_and_answers_keep_theirs(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    config = TokenizerConfig(vocab_size=120, end=False)
    Tokenizer.train(TEXTS, config).save(tmp_path)
    tokenizer, plain = Tokenizer.load(tmp_path), Tokenizer.train(TEXTS, replace(config, end=True))
    text = "two blue squares"
    (ids,), (mask,) = tokenizer.encode([text], 20)
    (whole,), (there,) = plain.encode([text], 20)
    assert ids[mask].tolist() == whole[there].tolist()[:-1] and plain.sep_id not in ids
    assert not tokenizer.cuts(text, int(mask.sum())) and plain.cuts(text, int(mask.sum()))
    assert tokenizer.as_written().encode([text], 20)[0].tolist() == [whole.tolist()]
    assert PreTrainedTokenizerFast.from_pretrained(str(tmp_path))(text).input_ids == ids[mask].tolist()
    Tokenizer.from_pretrained(tmp_path, end=True).save(tmp_path / "again")
    assert PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "again"))(text).input_ids == whole[there].tolist()
    assert tokenizer.digest != plain.digest
    assert "end" in config.identity and "end" not in TokenizerConfig().identity  # as runs from before there was one


def test_a_vocabulary_of_bert_loads(tmp_path: Path) -> None:
    words = ["[PAD]", "a", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode(["a dogs cat"], 6)[0].tolist() == [[3, 1, 6, 7, 2, 4]]


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(TEXTS), max_size=4),
    st.sampled_from(["albef", "blip", "none"]),
)
def test_tokens_of_words_in_turn_are_those_of_the_text(texts: list[str], clean: Cleaning) -> None:
    tokenizer = Tokenizer(BY_WORD._inner, SPECIALS, 30, clean)
    for text in (*texts, "na\u0131ve caf\u00e9 e\u0301 \u4e2d\u6587x [MASK] a\u200bb \u0301c 1,2-3"):
        cleaned = clean_text(text, 30, clean)
        assert tokenizer._by_word
        assert tokenizer._encode(cleaned) == tokenizer._inner.encode(cleaned, add_special_tokens=False).ids
        assert tokenizer._encode(cleaned) == tokenizer._encode(cleaned)


def test_words_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.text._MOST_WORDS", 10)
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=200))
    for number in range(50):
        tokenizer.encode([f"circle {number}"], 8)
        assert len(tokenizer._words) <= 10


def test_an_added_token_is_found_inside_a_text_as_the_library_does() -> None:
    inner = tokenizers.Tokenizer.from_str(BY_WORD._inner.to_str())
    inner.add_special_tokens(["[MASK]", "two words"])
    tokenizer = Tokenizer(inner, SPECIALS, 30, clean="none")
    for text in ("a [MASK] circle", "red[MASK]", "one two words blue"):
        assert tokenizer._encode(text) == inner.encode(text, add_special_tokens=False).ids
    assert tokenizer.mask_id in tokenizer._encode("red[MASK]")


def bpe_folder(folder: Path, tokens: list[str], config: dict[str, str]) -> Path:
    """A folder as transformers keeps RoBERTa's and CLIP's: tokenizer.json with a byte-level BPE."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={t: n for n, t in enumerate([*tokens, *letters])}, merges=[], unk_token=tokens[-1])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(tokens)
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_robertas_and_clips_tokenizers_load(tmp_path: Path) -> None:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    roberta = bpe_folder(tmp_path / "roberta", tokens, {"model_max_length": 512})  # type: ignore[dict-item]
    tokenizer = Tokenizer.from_pretrained(roberta, clean="none")
    special = [tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id]
    assert special == [0, 1, 2, 3, 4]
    ids = tokenizer.encode(["A, b"], 8)[0][0].tolist()
    assert ids[0] == 0 and ids[5:] == [2, 1, 1] and len(set(ids[1:5])) == 4  # capital, comma, blank and letter stay
    end = "<|endoftext|>"
    config = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    clip = Tokenizer.from_pretrained(bpe_folder(tmp_path / "clip", ["<|startoftext|>", end], config), clean="none")
    assert (clip.cls_id, clip.sep_id, clip.pad_id) == (0, 1, 1)
    clip.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.cleaning, again.sep_id) == ("none", 1)
    assert torch.equal(again.encode(["A, b"], 8)[0], clip.encode(["A, b"], 8)[0])


def test_missing_tokenizers_tokens_and_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ndog")
    with pytest.raises(UserError, match=r"its mask_token; name them in tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train(["", " ."], TokenizerConfig())


@pytest.mark.parametrize("bad", [{"vocab_size": 5}, {"max_words": 0}])
def test_senseless_settings_are_refused(bad) -> None:
    with pytest.raises(UserError):
        TokenizerConfig(**bad)
