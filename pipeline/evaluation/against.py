"""What `trimline evaluate` keeps of each instance, and how it is held against what another evaluation has kept."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from pipeline.evaluation.scores import Evaluated
from pipeline.measure.bootstrap import Interval, paired_interval
from pipeline.measure.outcomes import NotKeptError, check_outcomes, of_data, read_outcomes, write_outcomes


def check_against(against: Path, kept: Path | None) -> None:
    """Refuses before all work what could not be compared with behind it.

    Raises:
        UserError: The file is something else, damaged, or the one that is to be written.
    """
    if kept is not None and kept.resolve() == against.resolve():
        raise UserError(f"--outcomes and --against are the same file, {against}; give another one to --outcomes")
    try:
        check_outcomes(against)
    except UserError as error:
        raise UserError(f"--against: {error}; write it anew with --outcomes") from error


def scores_against(
    found: Evaluated, kept: Path | None, against: Path | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The scores, with their differences from another model's where one is named; and keeps what they are means of.

    Args:
        found: What was evaluated.
        kept: File to write; None for none.
        against: What another evaluation of the same split has written, of a run or of this command; None for none.

    Returns:
        Of each score its values; with `against` also "difference" {"value", "low", "high"} in points, None of a score
        that the file has not. And why there is no difference at all: the scores are not to be lost for that.

    Raises:
        UserError: There is nothing to keep.
    """
    differences, missing = dict[str, Interval](), None
    if against is not None:
        try:
            differences = _differences(found, against)
        except UserError as error:
            missing = str(error)
    if kept is not None:
        if not found.outcomes:
            raise UserError(f"--outcomes {kept}: there is no score that is a mean over instances; leave it out")
        write_outcomes(kept, found.digest, found.outcomes)
    scores = [asdict(score) for score in found.scores]
    if against is not None:
        scores = [{**score, "difference": _points(differences.get(score["metric"]))} for score in scores]
    return scores, missing


def _differences(found: Evaluated, against: Path) -> dict[str, Interval]:
    differences = {}
    for one in found.outcomes:
        try:
            theirs = read_outcomes(against, one.metric)
        except NotKeptError:
            continue
        differences[one.metric] = paired_interval([(of_data(one.series, found.digest), theirs)])
    if not differences:
        metrics = ", ".join(one.metric for one in found.outcomes) or "a score that is a mean over instances"
        raise UserError(f"--against {against} keeps nothing of {metrics}; give what --outcomes wrote of this task")
    return differences


def _points(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else {name: 100 * value for name, value in asdict(found).items()}
