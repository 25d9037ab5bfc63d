"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, all by pycocoevalcap, the COCO server's own program.

Its tokenizer and METEOR are Java programs. Nothing here stands in for a missing one: a score under one of these names
is that program's.
"""

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.errors import UserError

_BLEU = tuple(f"BLEU@{n}" for n in (1, 2, 3, 4))
METRICS = (*_BLEU, "METEOR", "ROUGE-L", "CIDEr", "SPICE")
"""All that the program can give; SPICE where its models are."""
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class CaptionScore(NamedTuple):
    """One metric.

    Attributes:
        metric: BLEU@1 to BLEU@4, METEOR, ROUGE-L, CIDEr or SPICE.
        value: On the program's scale: 0 to 1, CIDEr 0 to 10.
        each: Of each caption, where `value` is their mean; None where it is no mean.
    """

    metric: str
    value: float
    each: list[float] | None


def missing_for_captions() -> str | None:
    """What is missing on this machine, and how to mend it; None where all is there."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "caption metrics need pycocoevalcap: pip install 'trimline[captions]'"
    if shutil.which("java") is None:
        return (
            "caption metrics need Java, for pycocoevalcap's tokenizer and METEOR, and `java` is not on PATH: "
            "install a Java runtime (8 or later)"
        )
    return None


def missing_for(metric: str) -> str | None:
    """Likewise, for one of `METRICS`."""
    missing = missing_for_captions()
    if missing is None and metric == "SPICE" and not has_spice():
        return f"SPICE needs {' and '.join(_SPICE_MODELS)} in pycocoevalcap/spice/lib: put them there"
    return missing


def has_spice() -> bool:
    """Whether SPICE's model files lie where pycocoevalcap looks for them; they are not fetched."""
    found = importlib.util.find_spec("pycocoevalcap")
    assert found is not None and found.submodule_search_locations
    lib = Path(next(iter(found.submodule_search_locations))) / "spice" / "lib"
    return all((lib / name).exists() for name in _SPICE_MODELS)


def caption_scores(references: Mapping[str, Sequence[str]], captions: Mapping[str, str]) -> list[CaptionScore]:
    """All metrics of one caption per image.

    Args:
        references: At least one caption of each image, by id.
        captions: The predicted one of each of the same images.

    Raises:
        UserError: pycocoevalcap or Java is missing, or may not write its temporary files.
    """
    missing = missing_for_captions()
    if missing is not None:
        raise UserError(missing)
    with contextlib.redirect_stdout(sys.stderr):  # the program tells of its progress
        said, found = _tokenized({name: list(references[name]) for name in captions}, captions)
        return [score for scorer in _scorers() for score in _scored(scorer, said, found)]


def _tokenized(references: Mapping[str, list[str]], captions: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [references, {name: [caption] for name, caption in captions.items()}]
    # One line is one caption to it, so that no caption may break one.
    asked = [{name: [{"caption": " ".join(t.split())} for t in many] for name, many in of.items()} for of in texts]
    try:
        said, found = (PTBTokenizer().tokenize(of) for of in asked)
    except OSError as error:
        raise UserError(
            f"pycocoevalcap could not write beside its own files ({error}); install it where you may write"
        ) from error
    for want, got in zip(asked, (said, found), strict=True):
        if {name: len(many) for name, many in want.items()} != {name: len(many) for name, many in got.items()}:
            raise RuntimeError("pycocoevalcap's tokenizer gave another number of captions than it was asked for")
    return said, found


def _scorers() -> list[Any]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    scorers = [Bleu(4), Meteor(), Rouge(), Cider()]
    if has_spice():
        from pycocoevalcap.spice.spice import Spice

        scorers.append(Spice())
    return scorers


def _scored(scorer: Any, said: dict[str, Any], found: dict[str, Any]) -> list[CaptionScore]:
    if scorer.method() == "Bleu":
        values, _ = scorer.compute_score(said, found, verbose=0)  # of the corpus: no mean of single captions
        return [CaptionScore(name, float(value), None) for name, value in zip(_BLEU, values, strict=True)]
    value, each = scorer.compute_score(said, found)
    if scorer.method() == "METEOR":
        return [CaptionScore("METEOR", float(value), None)]
    if scorer.method() == "SPICE":
        each = [row["All"]["f"] for row in each]
    name = {"Rouge": "ROUGE-L"}.get(scorer.method(), scorer.method())
    return [CaptionScore(name, float(value), [float(one) for one in each])]
