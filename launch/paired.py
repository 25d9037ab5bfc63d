"""By how much models do better than others on the very same test instances, with intervals over these instances.

What hangs on the seed of a training is another thing: `launch.compare_table` has its interval beside this one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.result_rows import has_odd_target, task_of
from pipeline.measure.bootstrap import Series, paired, paired_interval
from pipeline.measure.outcomes import NotKeptError, outcomes_file, read_outcomes
from pipeline.metrics.captions import MEANS
from pipeline.trimming.target import Target

Row = Mapping[str, Any]
"""Of results.json."""

FULL = "own 1.0x"
"""What a trimmed model is held against in its own run."""

RESAMPLED = (
    "Differences in points on the very same test instances. In brackets the 95% interval: statements about the same "
    "picture, and about others that hang together with it (of NLVR all of one presentation), are resampled together; "
    "it tells what these models would do with other pictures."
)
"""What the intervals mean."""

_FEW = 2
_CAPTIONS = "captioning"
_CORPUS = "No paired intervals of BLEU and METEOR: they are scores of all captions together."


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """A run whose models were judged.

    Attributes:
        variant: What it is called in its comparison; "" outside of one.
        budget: Likewise.
        seed: Its seed.
        folder: Where it lies.
        rows: Its results, of the metrics that are to be compared.
    """

    variant: str
    budget: str
    seed: int
    folder: Path
    rows: Sequence[Row]

    def outcomes(self, row: Row) -> tuple[Series, ...]:
        """What became of each instance.

        Raises:
            NotKeptError: An older evaluation has not kept it.
            UserError: The file is damaged.
        """
        path = self.outcomes_of(row)
        try:
            return read_outcomes(path, str(row["metric"]))
        except UserError as error:
            raise UserError(f"{error}; remove {path.parent.parent} and run the same command again") from error

    def outcomes_of(self, row: Row) -> Path:
        """Where they lie."""
        stage = str(row.get("stage"))
        return outcomes_file(self.folder / "stages" / f"evaluate-{stage}", stage, str(row["split"]))

    def at(self, row: Row, target: Any) -> Row | None:
        """The row of another target that is else the same."""
        return next((each for each in self.like(row) if each.get("target") == target), None)

    def like(self, row: Row) -> list[Row]:
        """Rows of the same task, split and metric; of pre-training, or of fine-tuning for retrieval."""
        return [each for each in self.rows if _what(each) == _what(row)]


def _what(row: Row) -> tuple[Any, ...]:
    return task_of(row), row["split"], row["metric"], row.get("target") is None


Both = tuple[tuple[Series, ...], tuple[Series, ...]]
"""Outcomes of two models."""
Pair = tuple[JudgedRun, Row, JudgedRun, Row]
"""A model, and the one that it is held against: for either the run and its row."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is compared, over all seeds.

    Attributes:
        budget: Of the runs.
        variant: Whose models.
        score: Task with target, split and metric.
        against: What they are held against.
    """

    budget: str
    variant: str
    score: tuple[str, str, str]
    against: str


@dataclass
class Answers:
    """What is known.

    Attributes:
        rows: For each question that has an answer {"budget", "variant", "score", "against", "model", "split",
            "metric", "difference", "low", "high", "seeds", "by_seed", "instances", "groups"}; differences in points.
        missing: A sentence for each reason why others have none.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def score_of(row: Row) -> tuple[str, str, str]:
    """Task (with the target where there is one), split and metric, as comparisons call them."""
    return " ".join([task_of(row), *_named(row)]), str(row["split"]), str(row["metric"])


def _named(row: Row) -> list[str]:
    target = row["target"]
    if target is None:
        return []
    return [target if isinstance(target, str) else f"{target:g}x"]


def paired_differences(runs: Sequence[JudgedRun], reference: str | None = None) -> Answers:
    """Each target against its own run's untrimmed model, and each variant against the reference of the same seed.

    Args:
        runs: Of one comparison, or a single one.
        reference: The variant that others are held against; None for none.

    Returns:
        Differences pooled over the seeds that have outcomes, each paired within its own.
    """
    answers, without, lacking = Answers(), 0, dict[str, None]()
    asked: dict[Question, list[Pair]] = {}
    for question, pair in _questions([_readable(run, answers) for run in runs], reference):
        asked.setdefault(question, []).append(pair)
    for question, pairs in asked.items():
        refused = len(answers.missing)
        there = [(pair[0].seed, series) for pair in pairs if (series := _read(question, pair, answers, lacking))]
        if there:
            answers.rows.append({**_named_as(question), **_difference(there)})
        without += not there and len(answers.missing) == refused
    if any(not _is_mean(row) for run in runs for row in run.rows):
        answers.missing.append(_CORPUS)
    if lacking:
        answers.missing.append(_without(without, len(asked), [*lacking]))
    return answers


def own_differences(folder: Path, seed: int, rows: Sequence[Row]) -> Answers:
    """Each target of a single run against its untrimmed model.

    Args:
        folder: Of the run.
        seed: Its seed.
        rows: Its results.
    """
    told = [row for row in rows if {"split", "target"} <= row.keys()]
    return paired_differences([JudgedRun(variant="", budget="", seed=seed, folder=folder, rows=told)])


def _readable(run: JudgedRun, answers: Answers) -> JudgedRun:
    """The run without the rows whose target is none, which is told."""
    odd = [row for row in run.rows if has_odd_target(row)]
    which = dict.fromkeys(f"{row.get('stage')} has {row['target']!r}" for row in odd)
    answers.missing += [
        f"{run.folder.name}: no paired interval of what has no target that can be read: {each}." for each in which
    ]
    return replace(run, rows=[row for row in run.rows if row not in odd])


def _is_mean(row: Row) -> bool:
    """Whether a score is a mean over instances: of captions most are of all of them together."""
    return row["task"] != _CAPTIONS or row["metric"] in MEANS


def points(row: Mapping[str, Any]) -> str:
    """A difference as `-0.61 (-1.13 to +0.03)`: by one decimal it could not be told whether 0 lies inside."""
    return f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"


def _without(questions: int, asked: int, models: Sequence[str]) -> str:
    few = ", ".join(models[:_FEW]) + (f" and {len(models) - _FEW} more" if len(models) > _FEW else "")
    return (
        f"{questions} of {asked} differences have no paired interval, and others may lack seeds: "
        f"what became of each test instance is not kept for {few}. Older evaluations have not kept all of it; remove "
        "stages/evaluate-* of these runs and run the same command again."
    )


def _named_as(question: Question) -> dict[str, Any]:
    return {
        "budget": question.budget,
        "variant": question.variant,
        "score": " ".join(question.score),
        "against": question.against,
        **dict(zip(("model", "split", "metric"), question.score, strict=True)),
    }


def _questions(runs: Sequence[JudgedRun], reference: str | None) -> Iterator[tuple[Question, Pair]]:
    references = {(run.budget, run.seed): run for run in runs if run.variant == reference}
    for run in runs:
        for row in filter(_is_mean, run.rows):
            for against, other, held in _counterparts(run, row, references.get((run.budget, run.seed))):
                pair = run, row, other, held
                if not _taken_over(pair):
                    yield Question(budget=run.budget, variant=run.variant, score=score_of(row), against=against), pair


def _taken_over(pair: Pair) -> bool:
    """Whether both are one model, which one of the runs has taken over from the other (`share`)."""
    try:
        return pair[0].outcomes_of(pair[1]).samefile(pair[2].outcomes_of(pair[3]))
    except OSError:  # there are none, or they are just being written anew
        return False


def _counterparts(run: JudgedRun, row: Row, reference: JudgedRun | None) -> Iterator[tuple[str, JudgedRun, Row]]:
    """What a model is held against, with its name."""
    trimmed = row["target"] is not None and not Target.parse(row["target"]).is_full
    full = run.at(row, 1.0) if trimmed else None
    if full is not None:
        yield FULL, run, full
    if reference is None or reference.variant == run.variant:
        return
    same, like = reference.at(row, row["target"]), reference.like(row)
    if same is not None:
        yield reference.variant, reference, same
    elif len(like) == 1:  # a reference of one target is what all others are held against, whatever theirs
        yield " ".join([reference.variant, *_named(like[0])]), reference, like[0]


def _read(question: Question, pair: Pair, answers: Answers, lacking: dict[str, None]) -> Both | None:
    """Outcomes of both; None where they cannot be held against each other, which is told: other seeds stay."""
    try:
        both = _series(pair, lacking)
        for one, other in zip(*both, strict=True) if both else ():
            paired(one, other)
    except UserError as error:
        which = " ".join(each for each in (question.variant, *question.score) if each)
        where = f"{pair[0].folder.name}: no paired interval of {which} from {question.against}"
        answers.missing.append(f"{where}: {error}.")
        return None
    return both


def _series(pair: Pair, lacking: dict[str, None]) -> Both | None:
    """Outcomes of both; None where one of them has none, which is noted."""
    found = []
    for run, row in (pair[:2], pair[2:]):
        try:
            found.append(run.outcomes(row))
        except NotKeptError:
            lacking[f"{run.folder.name}: {row.get('stage')} on {row['split']}"] = None
    return (found[0], found[1]) if len(found) == 2 else None


_ENDS = {"difference": "value", "low": "low", "high": "high"}


def _points(share: float) -> float:
    """Without the last bits, which differ with the order of sums and would show where a figure is rounded."""
    return round(100 * share, 9)


def _difference(there: Iterable[tuple[int, Both]]) -> dict[str, Any]:
    """Of the pairs of several seeds, in points."""
    seeds, pairs = zip(*there, strict=True)
    interval = paired_interval(pairs)
    own = [series for series, _ in pairs]
    return {
        **{name: _points(getattr(interval, at)) for name, at in _ENDS.items()},
        "seeds": list(seeds),
        "by_seed": [_points(_mean(one) - _mean(other)) for one, other in pairs],
        "instances": sum(len(each.names) for series in own for each in series),
        "groups": len({group for series in own for group in series[0].groups}),
    }


def _mean(series: Sequence[Series]) -> float:
    """Mean of the means."""
    return sum(sum(each.values) / len(each.values) for each in series) / len(series)
