"""Three ways to clean a text: ALBEF's and BLIP's as their own code does, or none; what older files say of it."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.data.cleaning import Cleaning, clean_text, cleaning_of
from pipeline.data.loader import LoaderConfig, eval_loader
from pipeline.data.sample import TextKind
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.process import Process
from tests.pipeline.data.samples import Listed, png

KINDS: tuple[Cleaning, ...] = ("albef", "blip", "none")
OLD = {True: "albef", False: "none"}
TEXTS = ["It's 3:30 a.m., isn't it? (yes) black-white dog/cat", "The clock says: half past three!"]


@pytest.mark.parametrize(
    ("text", "clean", "expected"),
    [
        ('He said: "Stop!" (twice)...', "albef", "he said stop twice"),
        ("black-white   dog/cat", "albef", "black white dog cat"),
        ("<person> runs\n", "albef", "person runs"),
        ("one two three four five six", "albef", "one two three four"),
        ('He said: "Stop!" (twice)...', "blip", "he said stop twice"),
        ("It's black-white   dog/cat, no?", "blip", "it's black-white dog/cat, no?"),
        ("At 3:30 a.m.\n", "blip", "at 3 30 a"),
        ('He said:  "Stop!" (twice)...', "none", 'He said: "Stop!" (twice)...'),
        ("One two, three four. five", "none", "One two, three four."),
    ],
)
def test_texts_are_cleaned_as_their_projects_do(text: str, clean: Cleaning, expected: str) -> None:
    assert clean_text(text, 4, clean) == expected


def test_blip_leaves_no_blanks_in_questions() -> None:
    assert clean_text("Is it 3:30 a.m. (now)?", 9, "blip", question=True) == "is it 330 am now?"
    assert clean_text("Is it 3:30 a.m. (now)?", 9, "blip") == "is it 3 30 a m now ?"
    for clean in ("albef", "none"):
        assert clean_text(TEXTS[0], 9, clean, question=True) == clean_text(TEXTS[0], 9, clean)


@given(st.text(max_size=60), st.sampled_from(KINDS), st.booleans())
def test_cleaning_twice_is_cleaning_once(text: str, clean: Cleaning, question: bool) -> None:
    once = clean_text(text, 9, clean, question)
    assert clean_text(once, 9, clean, question) == once


@given(st.text(st.sampled_from("aB1 .,!?'\"()*#:;~-/"), max_size=60))
def test_blips_marks_become_blanks_of_which_one_stays(text: str) -> None:
    by_hand = "".join(" " if letter in '.!"()*#:;~' else letter.lower() for letter in text)
    assert clean_text(text, 99, "blip") == re.sub(" +", " ", by_hand).strip(" ")


@pytest.mark.parametrize("bad", ["ALBEF", "", 1, None, "true"])
def test_a_cleaning_that_is_none_is_refused(bad: object) -> None:
    with pytest.raises(UserError, match=r"must be one of albef, blip, none; true is albef, false is none"):
        cleaning_of(bad)


@pytest.mark.parametrize("old", [True, False])
def test_what_older_files_say_means_and_makes_the_same_bytes(old: bool, tmp_path: Path) -> None:
    name: Cleaning = cleaning_of(old)
    assert name == OLD[old] and TokenizerConfig(clean=old) == TokenizerConfig(clean=name)
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=120, clean=name))
    words = sorted(tokenizer._inner.get_vocab().items())
    whole = [words, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], 30, old]
    assert tokenizer.digest == hashlib.sha256(json.dumps(whole).encode()).hexdigest()
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["clean"] is old
    again = Tokenizer.load(tmp_path)
    assert again.cleaning == name and again.digest == tokenizer.digest


def test_blips_own_is_saved_by_name(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=120, clean="blip"))
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["clean"] == "blip"
    again = Tokenizer.load(tmp_path)
    assert again.cleaning == "blip" and again.digest == tokenizer.digest
    ids, _ = again.encode([TEXTS[0]], 40)
    assert again.text(ids[0].tolist()) == "it's 3 30 a m, isn't it? yes black - white dog / cat"


def test_the_oldest_saved_tokenizers_mean_albefs(tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=120, max_words=7)).save(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del said["clean"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    loaded = Tokenizer.from_pretrained(tmp_path, usual=TokenizerConfig(clean="none", max_words=50))
    assert (loaded.cleaning, loaded.max_words) == ("albef", 7)


@pytest.mark.parametrize(("kind", "said"), [("questions", "330 am"), ("answers", "330 am"), ("captions", "3 30 a m")])
def test_a_loader_cleans_questions_as_such(kind: TextKind, said: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([*TEXTS, "330 am"], TokenizerConfig(vocab_size=120, clean="blip"))
    question = {"question": "3:30 a.m.", "answers": ["yes"] * 10, "question_id": 1}
    record = Record(
        key="s0", source="test", id="0", images={"": png(0)}, captions=["3:30 a.m."], questions=[question]
    )  # fmt: skip
    write_split(Listed([record]), tmp_path / "s", name="s", fingerprint="test", layout=Layout(), workers=1)
    config = LoaderConfig(height=16, width=16, max_tokens=12, workers=0)
    (batch,) = eval_loader(
        tmp_path / "s", text=kind, unit="pair", config=config, tokenizer=tokenizer, batch_size=2, process=Process()
    )
    expected = torch.tensor(tokenizer._inner.encode(said, add_special_tokens=False).ids)
    assert torch.equal(batch.token_ids[0, 1 : 1 + len(expected)], expected)
    assert int(batch.token_mask.sum()) == len(expected) + 2
    assert not tokenizer.question  # it may be used for captions and answers beside
