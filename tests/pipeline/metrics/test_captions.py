"""Caption metrics without their programs; with them: `tests/launch/test_score_captions.py`."""

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
