"""Caption metrics without their programs; with them: `tests/launch/test_score_captions.py`."""

import pytest

from data_prep.errors import UserError
from pipeline.metrics.captions import caption_scores


def test_without_java_nothing_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="install a Java runtime"):
        caption_scores({"1": ["a red circle"]}, {"1": "a"})
