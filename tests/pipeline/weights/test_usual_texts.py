"""Texts of imported weights, whose tokenizers do not say how they are read: as the weights' projects read them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.cleaning import Cleaning
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.evaluation.export_input import loader_of, tokenizer_of
from pipeline.models.config import BackboneName, ModelConfig
from tests.pipeline.data.test_text import bpe_folder
from tests.pipeline.small import small_config

TEXT = "A photo of a Dog's black-white bed, no?"
PLAIN_WORDS = ["a", "photo", "of", "dog", "dogs", "black", "white", "bed", "no", ",", "?", "'", "-", "s", "."]


def imported(folder: Path, kind: str = "backbone") -> Path:
    """What `trimline import` leaves of a model, without its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"kind": kind, "model": {}, "imported": {"kind": "x", "from": "x"}}))
    return folder


def model_of(backbone: BackboneName, tokenizer: Tokenizer) -> ModelConfig:
    config = small_config(backbone=backbone)
    text = replace(config.text, vocab_size=400, pad_id=None if config.text.pad_id is None else tokenizer.pad_id)
    return replace(config, text=text)


def berts(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLAIN_WORDS]))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "clean_up_tokenization_spaces": true}')
    return folder


def robertas(folder: Path) -> Path:
    return bpe_folder(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], {"model_max_length": "512"})


def clips(folder: Path) -> Path:
    return bpe_folder(folder, ["<|startoftext|>", "<|endoftext|>"], {"unk_token": "<|endoftext|>"})


@pytest.mark.parametrize(
    ("backbone", "make", "clean", "words", "read"),
    [
        ("albef", berts, "albef", 30, "a photo of a dogs black white bed no"),
        ("blip", berts, "blip", 30, "a photo of a dog ' s black - white bed , no ?"),
        ("meter", robertas, "none", 50, TEXT),
        ("clip", clips, "none", 77, TEXT),
    ],
)
def test_a_backbones_texts_are_read_as_it_was_trained(
    backbone: BackboneName, make, clean: Cleaning, words: int, read: str, tmp_path: Path
) -> None:
    theirs, folder = make(tmp_path / "theirs"), imported(tmp_path / "ours")
    config = model_of(backbone, Tokenizer.from_pretrained(theirs))
    tokenizer = tokenizer_of(folder, theirs, config)
    assert (tokenizer.cleaning, tokenizer.max_words) == (clean, words)
    ids, mask = tokenizer.encode([TEXT, " ".join(["no"] * 99)], 400)
    ending = [] if backbone == "albef" else [tokenizer.sep_id]  # its authors took [SEP] away
    assert ids[0][mask[0]].tolist()[1:] == tokenizer._inner.encode(read, add_special_tokens=False).ids + ending
    counted = tokenizer._inner.encode(" ".join(["no"] * words), add_special_tokens=False).ids
    assert int(mask[1].sum()) == 1 + len(counted) + len(ending)


@pytest.mark.parametrize(("kind", "words"), [("blip_vqa", 50), ("blip_nlvr", 40), ("blip_retrieval", 30)])
def test_blips_fine_tuned_models_read_as_many_words_as_blip_gives_them(kind: str, words: int, tmp_path: Path) -> None:
    theirs, folder = berts(tmp_path / "theirs"), imported(tmp_path / "ours", kind)
    tokenizer = tokenizer_of(folder, theirs, model_of("blip", Tokenizer.from_pretrained(theirs)))
    assert (tokenizer.cleaning, tokenizer.max_words) == ("blip", words)


@pytest.mark.parametrize(
    ("backbone", "kind", "task", "tokens"),
    [
        ("albef", "backbone", None, 25), ("albef", "backbone", "zero_shot", 25), ("albef", "backbone", "retrieval", 30),
        ("albef", "albef_vqa", "vqa_generative", 64), ("blip", "backbone", None, 30),
        ("blip", "backbone", "retrieval", 35), ("blip", "blip_vqa", "vqa_generative", 35),
        ("meter", "backbone", "retrieval", 50), ("clip", "backbone", "retrieval", 77),
    ],
)  # fmt: skip
def test_texts_are_cut_where_the_references_cut_them(
    backbone: BackboneName, kind: str, task: str | None, tokens: int, tmp_path: Path
) -> None:
    config = small_config(backbone=backbone)
    config = replace(config, text=replace(config.text, max_positions=99))
    assert loader_of(tmp_path, {"kind": kind}, config, task).max_tokens == tokens


def test_a_tokenizer_that_says_is_believed(tmp_path: Path) -> None:
    saved = Tokenizer.train([TEXT], TokenizerConfig(vocab_size=100, clean="albef", max_words=9))
    saved.save(tmp_path / "theirs")
    tokenizer = tokenizer_of(imported(tmp_path / "ours"), tmp_path / "theirs", model_of("blip", saved))
    assert (tokenizer.cleaning, tokenizer.max_words) == ("albef", 9)


def test_an_export_of_ours_says_for_a_tokenizer_that_does_not(tmp_path: Path) -> None:
    folder, theirs = imported(tmp_path / "ours"), berts(tmp_path / "theirs")
    Tokenizer.train([TEXT], TokenizerConfig(vocab_size=100, clean=True, max_words=9)).save(folder)
    tokenizer = tokenizer_of(folder, theirs, model_of("blip", Tokenizer.from_pretrained(theirs)))
    assert (tokenizer.cleaning, tokenizer.max_words) == ("albef", 9)


def test_clips_prompts_keep_their_full_stop(tmp_path: Path) -> None:
    theirs = clips(tmp_path / "theirs")
    tokenizer = tokenizer_of(imported(tmp_path / "ours"), theirs, model_of("clip", Tokenizer.from_pretrained(theirs)))
    ids, mask = tokenizer.encode(["a photo of a dog."], 77)
    assert tokenizer.tokens(ids[0][mask[0]].tolist())[-2] == "."
