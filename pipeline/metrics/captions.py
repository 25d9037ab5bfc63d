"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, all by pycocoevalcap, the COCO server's own program.

Its tokenizer and METEOR are Java programs. Nothing here stands in for a missing one: a score under one of these names
is that program's, and so is each resampled one that an interval is made of.

I captions, P numbers that are counted of each, D resamples.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from pipeline.measure.bootstrap import Interval, group_interval, summed_intervals

_BLEU = tuple(f"BLEU@{n}" for n in (1, 2, 3, 4))
MEANS = ("ROUGE-L", "CIDEr", "SPICE")
"""Means over pictures; of the others there is a score of many captions alone."""
METRICS = (*_BLEU, "METEOR", *MEANS)
"""All that the program can give; SPICE where its models are."""
_JAVA_SECONDS = 60.0
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

_Texts = dict[str, list[str]]
"""Captions by picture, tokenized."""


class CaptionScore(NamedTuple):
    """One metric.

    Attributes:
        metric: BLEU@1 to BLEU@4, METEOR, ROUGE-L, CIDEr or SPICE.
        interval: On the program's scale, 0 to 1, CIDEr 0 to 10; resampled by pictures. CIDEr's document frequencies
            stay those of all pictures.
        each: Of each caption, where the score is their mean; None where it is no mean.
    """

    metric: str
    interval: Interval
    each: list[float] | None


def missing_for_captions() -> str | None:
    """What is missing on this machine, and how to mend it; None where all is there."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        return "caption metrics need pycocoevalcap: pip install -e '.[captions]' in Trimline's checkout"
    beside = Path(next(iter(found.submodule_search_locations))) / "tokenizer"
    if not os.access(beside, os.W_OK):
        return f"caption metrics need to write beside pycocoevalcap's own files ({beside}): install it where you may"
    java = shutil.which("java")
    wrong = "is not on PATH" if java is None else _wrong_with(java)
    if not wrong:
        return None
    return (
        f"caption metrics need Java, for pycocoevalcap's tokenizer and METEOR, and `java` {wrong}: "
        "install a Java runtime (8 or later)"
    )


@functools.cache
def _wrong_with(java: str) -> str:
    """Why a runtime does not start; empty where it does."""
    try:
        ended = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=_JAVA_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start ({error})"
    said = (ended.stderr or ended.stdout).strip().splitlines()
    return f"ends with code {ended.returncode} ({said[0] if said else 'in silence'})" if ended.returncode else ""


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
        UserError: pycocoevalcap or Java is missing, or may not write its temporary files; or all references are
            empty, of which CIDEr has no frequencies.
    """
    missing = missing_for_captions()
    if missing is not None:
        raise UserError(missing)
    with contextlib.redirect_stdout(sys.stderr):  # the program tells of its progress
        said, found = _tokenized({name: list(references[name]) for name in captions}, captions)
        if not any(text for texts in said.values() for text in texts):
            raise UserError(
                f"none of the annotators' captions of {len(said)} pictures has a word to compare with; give "
                "annotations that have some"
            )
        return [*_bleu(said, found), _meteor(said, found), *_means(said, found)]


def _tokenized(references: Mapping[str, list[str]], captions: Mapping[str, str]) -> tuple[_Texts, _Texts]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [references, {name: [caption] for name, caption in captions.items()}]
    # One line is one caption to it, so that no caption may break one.
    asked = [{name: [{"caption": " ".join(t.split())} for t in many] for name, many in of.items()} for of in texts]
    try:
        with _without_counts():
            said, found = (PTBTokenizer().tokenize(of) for of in asked)
    except OSError as error:
        raise UserError(
            f"pycocoevalcap could not write beside its own files ({error}); install it where you may write"
        ) from error
    for want, got in zip(asked, (said, found), strict=True):
        if {name: len(many) for name, many in want.items()} != {name: len(many) for name, many in got.items()}:
            raise RuntimeError("pycocoevalcap's tokenizer gave another number of captions than it was asked for")
    return said, found


@contextlib.contextmanager
def _without_counts() -> Iterator[None]:
    """Keeps from the screen how many tokens the tokenizer cut, which it tells there itself; all else is told after."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as told:
        stderr = os.dup(2)
        os.dup2(told.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            told.seek(0)
            lines = told.read().decode(errors="replace").splitlines()
            rest = [line for line in lines if not line.startswith("PTBTokenizer tokenized")]
            if rest:
                print("\n".join(rest), file=sys.stderr)


def _bleu(said: _Texts, found: _Texts) -> list[CaptionScore]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=len(_BLEU))
    for name, texts in said.items():
        scorer += (found[name][0], texts)
    counts = [{**each, "reflen": [_closest(scorer, each)]} for each in scorer.ctest]

    def of_sums(sums_DP: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each set of captions as if it were a single one: the program has the same formula for both."""
        sets = BleuScorer(n=len(_BLEU))
        sets.ctest = [_as_counts(sums) for sums in sums_DP.tolist()]
        _, each = sets.compute_score(option="closest")
        return np.array(each).T

    values, _ = scorer.compute_score(option="closest")
    parts_IP = np.array([[each["testlen"], *each["reflen"], *each["guess"], *each["correct"]] for each in counts])
    return _of_corpus(_BLEU, values, parts_IP, of_sums, [*said])


def _closest(scorer: Any, counts: Mapping[str, Any]) -> int:
    """The length of the annotators' caption that is nearest to the predicted one's."""
    return int(scorer._single_reflen(counts["reflen"], "closest", counts["testlen"]))


def _as_counts(sums: list[float]) -> dict[str, Any]:
    testlen, reflen, *rest = sums
    return {"testlen": testlen, "reflen": [reflen], "guess": rest[: len(_BLEU)], "correct": rest[len(_BLEU) :]}


def _meteor(said: _Texts, found: _Texts) -> CaptionScore:
    from pycocoevalcap.meteor.meteor import Meteor

    lines: list[str] = []

    class KeepingMeteor(Meteor):  # type: ignore[misc]  # it ships no types
        """Keeps what METEOR's process counts of each caption, from which the same process makes the scores."""

        def _stat(self, hypothesis_str: str, reference_list: list[str]) -> str:
            lines.append(str(super()._stat(hypothesis_str, reference_list)))
            return lines[-1]

    meteor = KeepingMeteor()
    value, _ = meteor.compute_score(said, found)

    def of_sums(sums_DP: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each set of captions as if it were a single one: the program scores both by the same function."""
        asked = " ||| ".join(["EVAL", *(" ".join(map(str, sums)) for sums in sums_DP.tolist())])
        meteor.meteor_p.stdin.write(f"{asked}\n".encode())
        meteor.meteor_p.stdin.flush()
        told = [float(meteor.meteor_p.stdout.readline()) for _ in range(len(sums_DP) + 1)]
        return np.array(told[:-1])[:, None]  # the last is that of all of them together

    (score,) = _of_corpus(("METEOR",), [value], np.array([*map(_adding_up, lines)]), of_sums, [*said])
    return score


_CHUNKS = 20
"""Where METEOR 1.5 tells in how many pieces words match: behind two lengths, two numbers of function words, and four
numbers of matches (by test and reference, of content and function words) for each of its four ways to match."""


def _adding_up(line: str) -> list[float]:
    """What METEOR counted of a caption as it adds up over captions, where one that matches whole counts as no piece."""
    counts = [float(each) for each in line.split()]
    test, reference, matches = counts[0], counts[1], counts[4:_CHUNKS]
    if (sum(matches[0::2]), sum(matches[1::2]), counts[_CHUNKS]) == (test, reference, 1):
        counts[_CHUNKS] = 0
    return counts


def _of_corpus(
    metrics: Sequence[str],
    values: Sequence[float],
    parts_IP: NDArray[Any],
    of_sums: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    names: Sequence[str],
) -> list[CaptionScore]:
    """Scores that the program gives of all captions together, with intervals from what it counted of each.

    Args:
        metrics: Their names.
        values: What the program gives.
        parts_IP: Of each of I captions the P numbers that it adds up.
        of_sums: What the program makes of such sums.
        names: Of the images.
    """
    scores = []
    for metric, value, found in zip(metrics, values, summed_intervals(parts_IP, names, of_sums), strict=True):
        if found.value != value:
            raise RuntimeError(f"pycocoevalcap has {metric} at {value}, and at {found.value} by what it counted")
        scores.append(CaptionScore(metric, found, None))
    return scores


def _means(said: _Texts, found: _Texts) -> list[CaptionScore]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    told = {"ROUGE-L": Rouge().compute_score(said, found), "CIDEr": Cider().compute_score(said, found)}
    if has_spice():
        from pycocoevalcap.spice.spice import Spice

        value, each = Spice().compute_score(said, found)
        told["SPICE"] = value, [row["All"]["f"] for row in each]
    scores = []
    for metric, (value, each) in told.items():
        mean = group_interval(each, [*said])
        scores.append(CaptionScore(metric, Interval(float(value), mean.low, mean.high), [float(one) for one in each]))
    return scores
