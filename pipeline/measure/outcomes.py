"""What became of every instance of an evaluation, kept so that two models can be compared instance by instance."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.files import write_atomic
from pipeline.measure.bootstrap import Series

OUTCOMES = "outcomes"
"""Folder in the evaluation's, with a file MODEL-SPLIT.npz for each."""


class NotKeptError(Exception):
    """What became of the instances was not kept, as in older evaluations."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Of what a score is the mean.

    Attributes:
        metric: Its name.
        series: What each instance adds to it, 0 to 1 (CIDEr to 10); several where the score is the mean of their means.
    """

    metric: str
    series: tuple[Series, ...]


def numbered(keys: Iterable[str]) -> list[str]:
    """Names for instances of which several may belong to one sample: KEY#0, KEY#1 and so on, in the split's order."""
    seen: dict[str, int] = {}
    names = []
    for key in keys:
        seen[key] = seen.get(key, -1) + 1
        names.append(f"{key}#{seen[key]}")
    return names


def digest_of(asked: Iterable[Sequence[str]]) -> str:
    """What tells the instances of a split from those of another whose samples have the same names.

    The order does not count: published splits are shuffled by the data's seed, and stay the same pictures.

    Args:
        asked: Of each instance its key, its name in the data set, and what is asked.
    """
    lines = sorted("\0".join(words).encode(errors="surrogatepass") for words in asked)
    return sha256(b"\n".join(lines)).hexdigest()[:12]


def outcomes_file(stage: Path, model: str, split: str) -> Path:
    """Where the outcomes of a model on a split lie.

    Args:
        stage: Folder of the stage that evaluated it.
        model: Name of the stage that trained it.
        split: Its name.
    """
    return stage / OUTCOMES / f"{model}-{split.replace('/', '-')}.npz"


def write_outcomes(path: Path, digest: str, outcomes: Sequence[Outcomes]) -> None:
    """Writes them, whole or not at all.

    Args:
        path: See `outcomes_file`.
        digest: Of the split's instances, see `digest_of`.
        outcomes: By metric.

    Raises:
        UserError: The disk is full.
    """
    arrays: dict[str, Any] = {"digest": digest, "metrics": [one.metric for one in outcomes]}
    for at, one in enumerate(outcomes):
        for number, each in enumerate(one.series):
            arrays |= {f"{at}/{number}/{part}": getattr(each, part) for part in _PARTS}
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, held.getvalue())


def check_outcomes(path: Path) -> None:
    """Looks whether a file is one that `write_outcomes` has written, as far as its first words tell.

    Raises:
        UserError: It is damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            held["metrics"].tolist(), str(held["digest"])
    except _DAMAGE as error:
        raise UserError(f"{path} does not tell what became of instances ({error})") from error


def read_outcomes(path: Path, metric: str) -> tuple[Series, ...]:
    """The series of a metric; their groups bear the digest of the data (`of_data`).

    Raises:
        NotKeptError: There are none, or none of this metric.
        UserError: The file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            metrics, data = held["metrics"].tolist(), str(held["digest"])
            if metric not in metrics:
                raise NotKeptError(f"{path} keeps nothing of {metric}")
            at = metrics.index(metric)
            count = sum(name.startswith(f"{at}/") and name.endswith("/names") for name in held.files)
            series = [{part: held[f"{at}/{n}/{part}"].tolist() for part in _PARTS} for n in range(count)]
            return of_data([Series(**each) for each in series], data)
    except FileNotFoundError as error:
        raise NotKeptError(f"{path} is not there") from error
    except _DAMAGE as error:
        raise UserError(f"{path} does not tell what became of instances by {metric} ({error})") from error


_PARTS = ("names", "values", "groups")
# What NumPy and zipfile raise on a file that is damaged, or a disk that does not answer.
_DAMAGE = (ValueError, KeyError, EOFError, OSError, RuntimeError, TypeError, zlib.error, zipfile.BadZipFile)


def of_data(series: Iterable[Series], digest: str) -> tuple[Series, ...]:
    """The same with groups that bear the digest of the data, so that those of other data are other groups."""
    return tuple(replace(each, groups=[f"{digest}/{group}" for group in each.groups]) for each in series)
