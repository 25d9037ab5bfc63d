"""Caption metrics without their programs; with them: `tests/launch/test_score_captions.py`."""

import os

import pytest

from data_prep.errors import UserError
from pipeline.metrics import captions
from pipeline.metrics.captions import caption_scores


def test_without_java_nothing_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="install a Java runtime"):
        caption_scores({"1": ["a red circle"]}, {"1": "a"})


def test_references_without_a_word_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "missing_for_captions", lambda: None)
    monkeypatch.setattr(captions, "_tokenized", lambda said, told: ({"1": ["", ""]}, {"1": ["a"]}))
    with pytest.raises(UserError, match="none of the annotators' captions of 1 pictures has a word"):
        caption_scores({"1": ["!", ""]}, {"1": "a"})


def test_the_tokenizers_count_is_kept_from_the_screen_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError), captions._without_counts():
        os.write(2, b"PTBTokenizer tokenized 9 tokens at 10.1 tokens per second.\nException in thread main\n")
        raise OSError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "Exception in thread main\nafter\n"
