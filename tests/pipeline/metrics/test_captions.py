"""Caption metrics are pycocoevalcap's own."""

import pytest

from data_prep.errors import UserError
from pipeline.metrics.captions import caption_scores, has_spice, missing_for_captions

needs_all = pytest.mark.skipif(missing_for_captions() is not None, reason=str(missing_for_captions()))

REFERENCES = {
    "1": ["a red circle above a blue square.", "A red circle is over the blue square"],
    "2": ["two green stars"],
    "3": ["a large yellow ring, left of a small ring"],
}


@needs_all
def test_scores_are_those_of_the_program_itself() -> None:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = {"1": "a red square above\na circle", "2": "three green stars!", "3": ""}
    found = {row.metric: row for row in caption_scores(REFERENCES, said)}
    tokens = [
        PTBTokenizer().tokenize({name: [{"caption": text} for text in many] for name, many in of.items()})
        for of in (REFERENCES, {name: [text] for name, text in said.items()})
    ]
    value, each = Cider().compute_score(*tokens)
    assert found["CIDEr"].value == float(value)
    assert found["CIDEr"].each == list(each)
    assert {f"BLEU@{n}" for n in (1, 2, 3, 4)} | {"METEOR", "ROUGE-L"} <= set(found)
    assert ("SPICE" in found) == has_spice()


def test_without_java_nothing_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="install a Java runtime"):
        caption_scores(REFERENCES, {"1": "a"})
