"""What a model said on a split: scored by the rules of its task, and written as the task's server takes it.

The scores are those that `trimline score` gives of the file and the data set's own annotations.
"""

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.sources.nlvr2 import IDENTIFIER
from data_prep.sources.snli_ve import LABELS
from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import Sample
from pipeline.measure.outcomes import Outcomes, numbered
from pipeline.metrics.caption_tally import WORD_ACCURACY, CaptionTally
from pipeline.metrics.captions import METRICS as CAPTION_METRICS
from pipeline.metrics.captions import missing_for
from pipeline.metrics.ranks import RECALLS
from pipeline.metrics.result_files import write_nlvr2, write_snli_ve, write_vqa
from pipeline.metrics.tasks import (
    Asked,
    Score,
    nlvr2_outcomes,
    outcomes_of,
    score_of,
    snli_ve_outcomes,
    vqa_outcomes,
)

_NO_NAME = {
    "nlvr2": (
        "no identifier split-set-pair-sentence (ALBEF's lists leave them out), so there is accuracy, but no "
        "consistency and no result file; for those make shards of NLVR2's own files with `trimline shard nlvr2`"
    ),
    "snli_ve": (
        "no pair_id (ALBEF's lists leave it out), so there is accuracy, but no result file; for that make shards of "
        "SNLI-VE's own files with `trimline shard snli_ve`"
    ),
}
"""What instances lack that no server knows, by task."""


class Tally(ABC):
    """Collects what was said, batch by batch."""

    ending = ""
    """Of the result file; empty where no server takes one."""
    metrics: tuple[str, ...] = ()
    """Names of its scores."""
    kinds_of: str = ""
    """The metric that is also scored by kind, as ``METRIC KIND``; the kinds are the data's."""

    @property
    def lacking(self) -> str | None:
        """Why there is no result file and not every score, where the data lacks the ids for it; None where all is."""
        return None

    @abstractmethod
    def add(self, batch: ImageTextBatch, said: Sequence[int], names: Sequence[str]) -> None:
        """Takes a batch.

        Args:
            batch: What was asked.
            said: Number of the class that each instance was given.
            names: Of the classes.

        Raises:
            UserError: An instance has no id, or that of another one.
        """

    @abstractmethod
    def outcomes(self) -> list[Outcomes]:
        """By metric what became of each instance; none where nobody knows what is right."""

    def scores(self) -> list[Score]:
        """All scores."""
        return [score_of(each) for each in self.outcomes()]

    @abstractmethod
    def write(self, path: Path) -> None:
        """Writes the result file."""


class StatementTally(Tally):
    """Statements; no server takes them."""

    metrics = ("accuracy", "consistency")

    def __init__(self) -> None:
        self.right: list[float] = []
        self.keys: list[str] = []
        self.groups: list[str] = []
        self.clusters: list[str] = []

    def add(self, batch: ImageTextBatch, said: Sequence[int], names: Sequence[str]) -> None:
        """Takes a batch."""
        self.right += [float(one == label) for one, label in zip(said, batch.labels.tolist(), strict=True)]
        self.keys += batch.keys
        self.groups += batch.groups
        self.clusters += batch.clusters

    def outcomes(self) -> list[Outcomes]:
        """Accuracy; and consistency, where statements are told of several pictures.

        A drawn picture and its twin are one group too, but nobody presented them: their group is their cluster.
        """
        found = [_accuracy(self.keys, self.right, self.clusters)]
        if len(set(self.groups)) < len(self.groups) and self.groups != self.clusters:
            found.append(self._consistency())
        return found

    def _consistency(self) -> Outcomes:
        """Share of examples of which every picture is judged rightly."""
        all_right: dict[str, float] = defaultdict(lambda: 1.0)
        cluster_of: dict[str, str] = {}
        for hit, group, cluster in zip(self.right, self.groups, self.clusters, strict=True):
            all_right[group] = min(all_right[group], hit)
            cluster_of[group] = cluster
        return outcomes_of("consistency", all_right, (cluster_of[group] for group in all_right))

    def write(self, path: Path) -> None:
        """Nothing: there is no server."""


def _accuracy(keys: Sequence[str], right: Sequence[float], clusters: Sequence[str]) -> Outcomes:
    """Of instances that have no names but their samples'."""
    return outcomes_of("accuracy", dict(zip(numbered(keys), right, strict=True)), clusters)


class NamedTally(Tally):
    """Instances that a server knows by name; where some have none there is the accuracy alone.

    Attributes:
        instances: What they are.
        key: What their name is called.
        no_name: What those lack that have none.
    """

    instances: str
    key: str
    no_name: str

    def __init__(self) -> None:
        self.right: list[float] = []
        self.keys: list[str] = []
        self.clusters: list[str] = []
        self.nameless: list[str] = []
        self.found: dict[str, str] = {}
        self.gold: dict[str, tuple[str, str]] = {}

    @abstractmethod
    def name_of(self, batch: ImageTextBatch, row: int) -> str | None:
        """The name of an instance; None where it has none."""

    def add(self, batch: ImageTextBatch, said: Sequence[int], names: Sequence[str]) -> None:
        """Takes a batch."""
        for row, label in enumerate(batch.labels.tolist()):
            self.right.append(float(said[row] == label))
            name = self.name_of(batch, row)
            if name is None:
                self.nameless.append(batch.keys[row])
                continue
            _refuse_twice(batch, row, self.key, name, self.found)
            self.found[name] = names[said[row]]
            self.gold[name] = names[label], batch.ids[row]
        self.keys += batch.keys
        self.clusters += batch.clusters

    @property
    def lacking(self) -> str | None:
        """See the base."""
        if not self.nameless:
            return None
        some = f"{len(self.nameless)} of {len(self.right)} {self.instances}, {self.nameless[0]} the first,"
        return f"{some} have {self.no_name}"

    def outcomes(self) -> list[Outcomes]:
        """Of all metrics, or of the accuracy."""
        if self.lacking is not None:
            return [_accuracy(self.keys, self.right, self.clusters)]
        return self.named_outcomes()

    @abstractmethod
    def named_outcomes(self) -> list[Outcomes]:
        """Of all metrics, where all have names."""


class SnliVeTally(NamedTally):
    """Relations of SNLI-VE."""

    ending = ".jsonl"
    metrics = ("accuracy",)
    instances, key, no_name = "relations", "pair_id", _NO_NAME["snli_ve"]

    def name_of(self, batch: ImageTextBatch, row: int) -> str | None:
        """The pairID."""
        name = batch.told[row].get(self.key)
        return None if name is None else str(name)

    def named_outcomes(self) -> list[Outcomes]:
        """Accuracy."""
        return snli_ve_outcomes(self.found, self.gold, self.gold)

    def write(self, path: Path) -> None:
        """An object a line."""
        write_snli_ve(path, self.found)


class VqaTally(Tally):
    """Answers of VQA v2."""

    ending = ".json"
    metrics = ("accuracy",)
    kinds_of = "accuracy"

    def __init__(self) -> None:
        self.found: dict[Any, str] = {}  # question ids are numbers, and the server wants them so
        self.asked: dict[str, Asked] = {}

    def add(self, batch: ImageTextBatch, said: Sequence[int], names: Sequence[str]) -> None:
        """Takes a batch."""
        for row, told in enumerate(batch.told):
            name = told.get("question_id")
            if name is None:
                raise UserError(f"{batch.keys[row]}: {batch.texts[row]!r} has no question_id that tells results apart")
            _refuse_twice(batch, row, "question_id", name, self.found)
            self.found[name] = names[said[row]]
            if told.get("answers"):
                answers, kind = [str(answer) for answer in told["answers"]], told.get("answer_type")
                self.asked[str(name)] = Asked(answers, batch.ids[row], str(kind) if kind else None)

    def outcomes(self) -> list[Outcomes]:
        """Accuracy of the questions that annotators answered; those of a test split are the server's alone."""
        return vqa_outcomes({str(name): said for name, said in self.found.items()}, self.asked, self.asked)

    def write(self, path: Path) -> None:
        """The server's results.json."""
        write_vqa(path, self.found)


class Nlvr2Tally(NamedTally):
    """Statements about pairs of pictures (NLVR2)."""

    ending = ".csv"
    metrics = ("accuracy", "consistency")
    instances, key, no_name = "pairs", "id", _NO_NAME["nlvr2"]

    def name_of(self, batch: ImageTextBatch, row: int) -> str | None:
        """The corpus's identifier."""
        return batch.ids[row] if IDENTIFIER.fullmatch(batch.ids[row]) else None

    def named_outcomes(self) -> list[Outcomes]:
        """Accuracy and consistency."""
        return nlvr2_outcomes(self.found, {name: right for name, (right, _) in self.gold.items()}, self.gold)

    def write(self, path: Path) -> None:
        """The corpus's CSV."""
        write_nlvr2(path, self.found)


def _refuse_twice(batch: ImageTextBatch, row: int, key: str, name: Any, known: dict[Any, str]) -> None:
    if name in known:
        raise UserError(
            f"{batch.keys[row]}: {key} {name!r} stands twice in this split, so results cannot be told apart"
        )


TALLIES: dict[str, type[Tally]] = {
    "statement": StatementTally,
    "snli_ve": SnliVeTally,
    "vqa": VqaTally,
    "vqa_generative": VqaTally,
    "nlvr2": Nlvr2Tally,
}
"""By task."""

_ENDINGS = {
    **{task: tally.ending for task, tally in TALLIES.items() if tally.ending},
    "captioning": CaptionTally.ending,
}


def check_metric(task: str, metric: str) -> None:
    """Refuses, before anything runs, a metric of `trim.validation` that its task does not have.

    Raises:
        UserError: It is none of the task's.
    """
    metrics, kinds_of = RECALLS, ""
    if task != "retrieval":
        tally = CaptionTally if task == "captioning" else TALLIES[task]
        metrics, kinds_of = tally.metrics, tally.kinds_of
    of_kind = kinds_of and metric.startswith(f"{kinds_of} ")
    if metric not in metrics and not of_kind:
        there = [*metrics, *([f"'{kinds_of} KIND'"] if kinds_of else [])]
        raise UserError(f"trim.validation.metric={metric} is no score of trim.task={task}: {', '.join(there)}")


def lacking_in(task: str, samples: Iterable[Sample]) -> str | None:
    """What `Tally.lacking` will say of a split, as far as some samples of it tell before anything runs.

    Args:
        task: Whose results are wanted.
        samples: Of the split, such as the first ones.
    """
    nameless = next((sample.key for sample in samples if not _is_named(task, sample)), None)
    return None if nameless is None else f"{nameless} has {_NO_NAME[task]}"


def _is_named(task: str, sample: Sample) -> bool:
    if task == "nlvr2":
        return IDENTIFIER.fullmatch(sample.id) is not None
    statements = sample.fields.get("statements", ()) if task == "snli_ve" else ()
    return all(one.get("pair_id") is not None for one in statements if one.get("relation") in LABELS)


def check_identified(task: str, metric: str, split: str, samples: Iterable[Sample]) -> None:
    """Refuses, before anything runs, a metric of `trim.validation` for which the split lacks the ids.

    Args:
        task: Of fine-tuning.
        metric: Of `trim.validation`.
        split: Its name.
        samples: Of the split, such as the first ones.

    Raises:
        UserError: Consistency is wanted of pairs without the corpus's identifiers.
    """
    lacking = lacking_in(task, samples) if metric == "consistency" else None
    if lacking is not None:
        raise UserError(f"trim.validation.metric={metric} cannot be told of {split!r}: {lacking}; or take accuracy")


def check_programs(metric: str) -> None:
    """Refuses, before anything runs, a metric of `trim.validation` that this machine cannot compute.

    Raises:
        UserError: The programs that score captions are missing.
    """
    missing = missing_for(metric) if metric in CAPTION_METRICS else None
    if missing is not None:
        raise UserError(f"trim.validation.metric={metric}: {missing}; or take {WORD_ACCURACY}, which needs none of it")


def check_result_file(task: str, path: Path) -> None:
    """Refuses, before anything runs, a result file that nobody takes or that cannot be written.

    Args:
        task: What it is of.
        path: Given with ``--predictions``.

    Raises:
        UserError: The task has no server, the file another ending, or its folder cannot be written.
    """
    if task not in _ENDINGS:
        raise UserError(f"--predictions: there is no server for {task}, whose scores are printed; leave it out")
    check_can_be_written("--predictions", path, _ENDINGS[task], f", as {task}'s server takes it")


def check_can_be_written(option: str, path: Path, ending: str, why: str = "") -> None:
    """Refuses, before anything runs, a file that cannot be written, or is named otherwise than it will be looked for.

    Args:
        option: That names it.
        path: Of the file.
        ending: Of its name.
        why: Where this ending comes from.

    Raises:
        UserError: It has another ending, or its folder cannot be written.
    """
    if path.suffix != ending:
        raise UserError(f"{option} {path} must end in {ending}{why}; rename it")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; give a file in it")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {there} is no folder that you may write to; give another file")
