"""Scores of a file of predictions, task by task."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.errors import UserError
from data_prep.sources.snli_ve import LABELS
from pipeline.measure.bootstrap import Interval, Series, group_interval
from pipeline.measure.outcomes import Outcomes
from pipeline.metrics.captions import caption_scores
from pipeline.metrics.result_files import annotated, answered, predictions_of, refuse_other_labels, refuse_others
from pipeline.metrics.vqa import vqa_accuracy

_TRUTH = ("true", "false")
_NO_LABEL = "-"
"""In SNLI's files, of pairs on which annotators did not agree."""


@dataclass(frozen=True)
class Score:
    """A score on the scale that papers print: 0 to 100, CIDEr above.

    Attributes:
        metric: Its name.
        value: The score.
        low: Of the 95% interval by resampling pictures.
        high: Likewise.
        samples: Over how many.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int


def outcomes_of(metric: str, values: Mapping[str, float], groups: Iterable[str]) -> Outcomes:
    """By instance a value, from 0 to 1 but of CIDEr, and what it is resampled with."""
    return Outcomes(metric=metric, series=(Series(names=[*values], values=[*values.values()], groups=[*groups]),))


def score_of(outcomes: Outcomes) -> Score:
    """Their mean, with the interval by resampling groups."""
    (each,) = outcomes.series
    return _in_hundredths(outcomes.metric, group_interval(each.values, each.groups), len(each.values))


def _in_hundredths(metric: str, found: Interval, samples: int) -> Score:
    return Score(metric, 100 * found.value, 100 * found.low, 100 * found.high, samples)


@dataclass(frozen=True)
class Asked:
    """What is known of a VQA question.

    Attributes:
        answers: What the annotators said, as they wrote it.
        image: Name of its picture.
        kind: Type of its answer, such as ``yes/no``; None where nobody says.
    """

    answers: Sequence[str]
    image: str
    kind: str | None


def vqa_outcomes(found: Mapping[str, str], asked: Mapping[str, Asked], names: Iterable[str]) -> list[Outcomes]:
    """VQA v2 accuracy, of all questions and by the type of their answer, where there is one.

    Args:
        found: Predicted answers by question.
        asked: What is known of the questions.
        names: Those that count, in any order.
    """
    names = sorted(names)
    if not names:
        return []
    right = {name: vqa_accuracy(found[name], asked[name].answers) for name in names}
    kinds = sorted({kind for name in names if (kind := asked[name].kind)})
    of_kind = {f"accuracy {kind}": [n for n in names if asked[n].kind == kind] for kind in kinds}
    return [
        outcomes_of(metric, {name: right[name] for name in some}, (asked[name].image for name in some))
        for metric, some in {"accuracy": names, **of_kind}.items()
    ]


def snli_ve_outcomes(
    found: Mapping[str, str], gold: Mapping[str, tuple[str, str]], names: Iterable[str]
) -> list[Outcomes]:
    """Accuracy over the three classes.

    Args:
        found: Predicted relations by pair.
        gold: The right ones, and the names of the pictures.
        names: Those that count, in any order.
    """
    names = sorted(names)
    right = {name: float(found[name].lower() == gold[name][0]) for name in names}
    return [outcomes_of("accuracy", right, (gold[name][1] for name in names))]


def score_vqa(predictions: Path, annotations: Path, subset: bool) -> list[Score]:
    """VQA v2 accuracy; see `vqa_outcomes`.

    Args:
        predictions: The server's results.json: an array of {"question_id", "answer"}.
        annotations: v2_mscoco_val2014_annotations.json, or another of that format.
        subset: Whether questions without a prediction are left out.
    """
    found = predictions_of(predictions, "question_id", "answer")
    asked: dict[str, Asked] = {}

    def read(row: dict[str, Any]) -> None:
        answers, kind = [answer["answer"] for answer in row["answers"]], row["answer_type"]
        if not answers or not all(isinstance(each, str) for each in answers) or not isinstance(kind, str | None):
            raise ValueError
        asked[str(row["question_id"])] = Asked(answers, str(row["image_id"]), kind)

    annotated(
        annotations, "annotations", "question_id, image_id, answer_type and answers of annotators", read, "question_id"
    )
    return _scores(vqa_outcomes(found, asked, answered(predictions, found, asked, subset)))


def score_captions(predictions: Path, annotations: Path, subset: bool) -> list[Score]:
    """BLEU, METEOR, ROUGE-L, CIDEr, and SPICE where its models are.

    Args:
        predictions: The server's results.json: an array of {"image_id", "caption"}.
        annotations: captions_val2014.json, or another of that format.
        subset: Whether pictures without a prediction are left out.
    """
    found = predictions_of(predictions, "image_id", "caption")
    said: dict[str, list[str]] = defaultdict(list)

    def read(row: dict[str, Any]) -> None:
        if not isinstance(row["caption"], str):
            raise ValueError
        said[str(row["image_id"])].append(row["caption"])

    annotated(annotations, "annotations", "image_id and a text caption", read)
    return told_scores(found, said, answered(predictions, found, said, subset)).scores


class Told(NamedTuple):
    """Captions, judged.

    Attributes:
        scores: All there are.
        outcomes: By picture, of those scores that are means over pictures.
    """

    scores: list[Score]
    outcomes: list[Outcomes]


def told_scores(found: Mapping[str, str], said: Mapping[str, Sequence[str]], names: Iterable[str]) -> Told:
    """Scores of captions; see `score_captions`.

    Args:
        found: Told captions by picture.
        said: The annotators'.
        names: Pictures that count, in any order.

    Raises:
        UserError: pycocoevalcap or Java is missing.
    """
    names = sorted(names)
    told = Told([], [])
    for metric, interval, each in caption_scores(said, {name: found[name] for name in names}):
        told.scores.append(_in_hundredths(metric, interval, len(names)))
        if each is not None:
            told.outcomes.append(outcomes_of(metric, dict(zip(names, each, strict=True)), names))
    return told


def score_snli_ve(predictions: Path, annotations: Path, subset: bool) -> list[Score]:
    """Accuracy over the three classes.

    Args:
        predictions: An object a line: {"pairID", "prediction"}, such as entailment.
        annotations: snli_ve_dev.jsonl, or another of that format; pairs without a gold label are left out,
            predicted or not.
        subset: Whether pairs without a prediction are left out.
    """
    found = predictions_of(predictions, "pairID", "prediction")
    refuse_others(predictions, found, LABELS)
    gold: dict[str, tuple[str, str]] = {}

    def read(row: dict[str, Any]) -> None:
        image = row["Flickr30K_ID"] if "Flickr30K_ID" in row else row["Flikr30kID"]
        if row["gold_label"] in LABELS:
            gold[str(row["pairID"])] = row["gold_label"], str(image)
        elif row["gold_label"] == _NO_LABEL:
            found.pop(str(row["pairID"]), None)
        else:
            said = f"{annotations}: gold_label {row['gold_label']!r} of pair {row['pairID']}"
            raise UserError(f"{said} is none of {', '.join(LABELS)}, nor {_NO_LABEL!r}; give SNLI-VE's own file")

    annotated(annotations, "", "pairID, gold_label and Flickr30K_ID", read, "pairID")
    return _scores(snli_ve_outcomes(found, gold, answered(predictions, found, gold, subset)))


def score_nlvr2(predictions: Path, annotations: Path, subset: bool) -> list[Score]:
    """Accuracy and consistency, as the corpus's eval/metrics.py has them.

    Args:
        predictions: The corpus's CSV: identifier,True or False.
        annotations: dev.json, test1.json, or another of that format.
        subset: Whether examples without a prediction are left out.
    """
    found = predictions_of(predictions, "identifier", "prediction")
    refuse_others(predictions, found, _TRUTH)
    labels: dict[str, str] = {}

    def read(row: dict[str, Any]) -> None:
        _split, _images, _pair, _told = row["identifier"].split("-")
        labels[row["identifier"]] = str(row["label"])

    annotated(annotations, "", "label and an identifier split-set-pair-sentence", read, "identifier")
    refuse_other_labels(annotations, labels, _TRUTH)
    labels = {name: label.lower() for name, label in labels.items()}
    return _scores(nlvr2_outcomes(found, labels, answered(predictions, found, labels, subset)))


def _scores(outcomes: Iterable[Outcomes]) -> list[Score]:
    return [score_of(each) for each in outcomes]


def nlvr2_outcomes(found: Mapping[str, str], labels: Mapping[str, str], names: Iterable[str]) -> list[Outcomes]:
    """Accuracy, and the share of sentences that are judged rightly of every pair that they are told of.

    Args:
        found: Whether each example was said to be true, in any case.
        labels: Whether it is, in lower case.
        names: Those that count, in any order. A sentence counts for consistency where all of its pairs are among
            them: of a few of them it would be another, higher figure. Without such a sentence there is none.
    """
    names = sorted(names)
    right = {name: float(found[name].lower() == labels[name]) for name in names}
    wanted, given = (Counter(map(_sentence, some)) for some in (labels, names))
    consistent: dict[str, float] = defaultdict(lambda: 1.0)
    for name in names:
        if given[_sentence(name)] == wanted[_sentence(name)]:
            consistent[_sentence(name)] = min(consistent[_sentence(name)], right[name])
    accuracy = outcomes_of("accuracy", right, map(_image_set, names))
    return [accuracy, *([outcomes_of("consistency", consistent, map(_image_set, consistent))] if consistent else [])]


def _sentence(identifier: str) -> str:
    """Examples that share a sentence differ in the third part, the pair of pictures."""
    split, images, _, told = identifier.split("-", 3)
    return f"{split}-{images}--{told}"


def _image_set(identifier: str) -> str:
    return "-".join(identifier.split("-")[:2])


SCORED: dict[str, Callable[[Path, Path, bool], list[Score]]] = {
    "vqa": score_vqa,
    "captions": score_captions,
    "snli_ve": score_snli_ve,
    "nlvr2": score_nlvr2,
}
"""The tasks whose files of predictions can be scored."""
