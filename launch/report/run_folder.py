"""Reads a run folder for the report; what is absent or unreadable is noted, never invented."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import UserError
from data_prep.index import INDEX, indexed_splits
from launch.report.curves import Curve, read_curve
from launch.report.kinds import ACCOUNT, FAULT, INDEXED, PROGRESS, RESULT, ROW, RUN, STATUS, Kinds, strange
from launch.report.words import as_moment
from launch.result_rows import has_odd_target, task_of
from launch.spent import spent
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.quarantine import count_reasons
from pipeline.evaluation.unscored import UNSCORED
from pipeline.progress import BAD_UPDATES

_LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the run, from its status.json, progress.json and metrics.jsonl."""

    name: str
    folder: Path
    state: str
    started: Any
    ended: str | None
    seconds: float | None
    restarts: int
    outputs: Mapping[str, Any]
    """What its job reported: result.json and the outputs of status.json."""
    error: str
    """The message of a failed stage, empty elsewhere."""
    done_share: float | None
    """How far an unfinished stage came, 0 to 1."""
    curve: Curve | None
    restart_log: tuple[Mapping[str, Any], ...]
    """restarts.jsonl: when a lost process was noticed, why, from which step it went on, with how many workers."""
    bad_updates: tuple[Mapping[str, Any], ...]
    """bad_updates.jsonl: updates that were left out, and those that training went back to a checkpoint for."""
    bad_samples: Mapping[str, int]
    """How many samples the stage could not use, by reason."""
    unscored: tuple[Mapping[str, Any], ...]
    """What an evaluation has no scores of: "model", "split", and "why" with how to mend it."""
    log_tail: str
    """The last lines of each log of a stage that is not done."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What was asked of a data set's split, and what became of it."""

    name: str
    asked: int | None
    written: int | None
    skipped: Mapping[str, int]
    shards: int


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """What one of the stages drew that look at what models keep."""

    task: str
    """The name of the further task whose models it looked at; empty for the run's own."""
    folder: Path
    entries: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Everything that a report shows of a run."""

    path: Path
    facts: Mapping[str, Any]
    """run.json: name, command, started, finished, seconds, versions, commit, hardware, seed."""
    config_text: str
    config: Mapping[str, Any]
    stages: tuple[Stage, ...]
    splits: tuple[Split, ...]
    results: tuple[Mapping[str, Any], ...]
    instances: tuple[tuple[Path, Mapping[str, Any]], ...]
    """What evaluation saw of single instances: each file with what it says."""
    survivors: tuple[Survivors, ...]
    unreadable: tuple[str, ...]
    """Files that are there but could not be read, with the reason."""

    @property
    def name(self) -> str:
        """The run's own name, or its folder's."""
        return str(self.facts.get("name") or self.path.name)

    @property
    def trims(self) -> list[Mapping[str, Any]]:
        """The settings of trimming for each task that the configuration names, the run's own first."""
        tasks = self.config.get("tasks")
        further = tasks.values() if isinstance(tasks, Mapping) else ()
        trims = [each.get("trim") for each in (self.config, *further) if isinstance(each, Mapping)]
        return [trim for trim in trims if isinstance(trim, Mapping)]

    @property
    def targets(self) -> list[Any] | None:
        """The targets that the configuration gives the trim stages of all tasks; None where it does not say."""
        told = [trim["targets"] for trim in self.trims if isinstance(trim.get("targets"), list)]
        return [target for targets in told for target in targets] if told else None


@dataclass(frozen=True)
class _Reader:
    """Reads files that may be absent (gives the default) or broken (notes it, gives the default)."""

    root: Path
    unreadable: list[str] = field(default_factory=list)

    def json(self, path: Path, default: Any) -> Any:
        text = self.text(path)
        if not text:
            return self._note(path, "holds nothing", default) if path.is_file() else default
        try:
            value = json.loads(text)
        except ValueError as error:
            return self._note(path, error, default)
        if not isinstance(value, type(default)):
            return self._note(path, f"holds no JSON {type(default).__name__}", default)
        return value

    def record(self, path: Path, kinds: Kinds) -> dict[str, Any]:
        """An object whose known fields are what the report counts on; others are noted and left out."""
        return self.checked(path, self.json(path, {}), kinds)

    def checked(self, path: Path, value: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
        """The fields of an object that are what they should be; others are noted."""
        for name in strange(value, kinds):
            self._note(path, f"its {name!r} cannot be {value[name]!r:.60}", None)
        return {name: each for name, each in value.items() if name not in strange(value, kinds)}

    def rows(self, path: Path) -> tuple[Mapping[str, Any], ...]:
        """Scores; what is none is noted."""
        whole = self.json(path, [])
        read = (self.checked(path, row, ROW) for row in whole if isinstance(row, dict))
        rows = tuple(row for row in read if {"task", "metric"} <= row.keys())
        if len(rows) < len(whole):
            self._note(path, f"{len(whole) - len(rows)} of its rows name no task and metric", None)
        odd = [row for row in rows if has_odd_target(row)]
        if odd:
            some = f"{len(odd)} of its rows, {odd[0]['target']!r} the first"
            self._note(path, f"the target of {some}, which are left out", None)
        return tuple(row for row in rows if row not in odd)

    def unscored(self, path: Path) -> Mapping[str, Any]:
        """What an evaluation has no scores of, and why; what does not say it is noted."""
        value: Mapping[str, Any] = self.json(path, {})
        if value and not {"model", "split", "why"} <= value.keys():
            return self._note(path, "it does not say which model has no scores on which split, and why", {})
        return value

    def lines(self, path: Path) -> tuple[Mapping[str, Any], ...]:
        """The objects of a file of JSON lines; the last one may be cut short by a kill."""
        found, broken = [], 0
        for line in self.text(path).splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                broken += 1
        if broken > 1:
            self._note(path, f"{broken} of its lines are no JSON", None)
        return tuple(self.checked(path, value, FAULT) for value in found if isinstance(value, dict))

    def curve(self, path: Path) -> Curve | None:
        """A training curve; lines of the log that cannot be used are noted."""
        curve = read_curve(path)
        if curve is not None and curve.broken_lines:
            self._note(path, f"{curve.broken_lines} of its lines hold no step and are left out", None)
        return curve

    def reasons(self, folder: Path) -> Mapping[str, int]:
        """How many samples the lists of a stage name, by reason; lists that cannot be used are noted."""
        try:
            return count_reasons(folder)
        except (KeyError, TypeError) as error:
            return self._note(folder, f"a line of its lists names no sample ({error!r})", {})
        except OSError as error:
            return self._note(folder, error.strerror or error, {})

    def yaml(self, path: Path) -> Mapping[str, Any]:
        try:
            value = yaml.safe_load(self.text(path))
        except yaml.YAMLError as error:
            return self._note(path, error, {})
        return value if isinstance(value, Mapping) else {}

    def text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _note(self, path: Path, reason: object, default: Any) -> Any:
        where = path.relative_to(self.root)
        self.unreadable.append(f"{where} cannot be read: {' '.join(str(reason).split())}")
        return default


def read_run(path: Path) -> RunFolder:
    """Reads a run folder, finished or not.

    Raises:
        UserError: where the folder holds none of the files of a run.
    """
    if not any((path / name).exists() for name in ("run.json", "config.yaml", "stages", "results.json")):
        raise UserError(
            f"{path} is no run folder: it holds no run.json, config.yaml, stages/ or results.json; "
            "give the folder that `trimline run` wrote (its `out`)"
        )
    reader = _Reader(path)
    stages = _stages(reader)
    config = path / "config.yaml"
    return RunFolder(
        path=path,
        facts=reader.record(path / "run.json", RUN),
        config_text=reader.text(config),
        config=reader.yaml(config),
        stages=stages,
        splits=_splits(reader),
        results=_results(reader, stages),
        instances=_instances(reader, stages),
        survivors=_survivors(reader),
        unreadable=tuple(reader.unreadable),
    )


def _stages(reader: _Reader) -> tuple[Stage, ...]:
    folder = reader.root / "stages"
    # The stage that writes this very report has nothing to say about itself yet; a hidden one was being removed.
    names = sorted(path for path in folder.glob("*/") if path.name != "report" and not path.name.startswith("."))
    # In the order in which they began; one that never began comes last.
    return tuple(sorted((_stage(reader, path) for path in names), key=_began))


def _began(stage: Stage) -> tuple[bool, float]:
    when = as_moment(stage.started)
    return (when is None, 0.0 if when is None else when.timestamp())


def _stage(reader: _Reader, folder: Path) -> Stage:
    status = reader.record(folder / "status.json", STATUS)
    result = reader.record(folder / "result.json", RESULT)
    state = str(status.get("state", "not finished"))
    logs = [] if state == "done" else [reader.text(path).splitlines() for path in sorted(folder.glob("log*.txt"))]
    return Stage(
        name=folder.name,
        folder=folder,
        state=state,
        started=status.get("started"),
        ended=status.get("ended"),
        seconds=None if status.get("seconds") is None else spent(status, folder.iterdir()),
        restarts=int(status.get("restarts") or 0),
        outputs={**result, **(status.get("outputs") or {})},
        error=str(status.get("error") or ""),
        done_share=_done_share(reader.record(folder / "progress.json", PROGRESS)) if state != "done" else None,
        curve=reader.curve(folder / "metrics.jsonl"),
        restart_log=reader.lines(folder / "restarts.jsonl"),
        bad_updates=reader.lines(folder / BAD_UPDATES),
        bad_samples=reader.reasons(folder / QUARANTINE),
        unscored=_unscored(reader, folder, state),
        log_tail="\n\n".join("\n".join(log[-_LOG_LINES:]) for log in logs if log),
    )


def _unscored(reader: _Reader, folder: Path, state: str) -> tuple[Mapping[str, Any], ...]:
    """What an evaluation says of scores that it lacks; older ones say nothing, and have no rows."""
    paths = sorted(folder.glob(f"{UNSCORED}/*.json"))
    told = [value for path in paths if (value := reader.unscored(path))]
    evaluated = folder.name.startswith("evaluate-trim") and state == "done" and (folder / "results.json").is_file()
    if not paths and evaluated and not reader.json(folder / "results.json", []):
        why = (
            "an older evaluation, which does not say why; captions want pycocoevalcap and Java on the machine that "
            f"evaluates (then remove stages/{folder.name} and run the same command again), and other tasks want a "
            "split that says what is right"
        )
        told = [{"model": folder.name.removeprefix("evaluate-"), "split": "any split", "why": why}]
    return tuple(told)


def _survivors(reader: _Reader) -> tuple[Survivors, ...]:
    """Of the run's own task first."""
    folders = sorted(path.parent for path in reader.root.glob("stages/survivors*/survivors.json"))
    return tuple(
        Survivors(
            task=folder.name.removeprefix("survivors").removeprefix("-"),
            folder=folder,
            entries=tuple(reader.json(folder / "survivors.json", [])),
        )
        for folder in folders
    )


def _done_share(progress: Mapping[str, Any]) -> float | None:
    done, total = progress.get("done"), progress.get("total")
    return min(1.0, float(done) / float(total)) if done is not None and total else None


def _splits(reader: _Reader) -> tuple[Split, ...]:
    data = reader.root / "data"
    training_first = sorted(indexed_splits(data), key=lambda folder: folder.name != "train")
    return tuple(_split(reader, folder) for folder in training_first)


def _split(reader: _Reader, folder: Path) -> Split:
    index = reader.record(folder / INDEX, INDEXED)
    account = reader.checked(folder / INDEX, index.get("account") or {}, ACCOUNT)
    skipped = account.get("skipped") or {}
    return Split(
        name=folder.relative_to(reader.root / "data").as_posix(),
        asked=account.get("asked"),
        written=account.get("written"),
        skipped=skipped if isinstance(skipped, Mapping) else {"all reasons": int(skipped)},
        shards=len(index.get("shardlist") or ()),
    )


def _results(reader: _Reader, stages: tuple[Stage, ...]) -> tuple[Mapping[str, Any], ...]:
    """The run's results.json; of an unfinished run, what its stages have written so far."""
    whole = reader.rows(reader.root / "results.json")
    return whole or tuple(row for stage in stages for row in reader.rows(stage.folder / "results.json"))


def _instances(reader: _Reader, stages: tuple[Stage, ...]) -> tuple[tuple[Path, Mapping[str, Any]], ...]:
    """Of stages that are done, in the order of the stages; the untrimmed model first.

    Each gets the `name` of its task from its stage's own rows: the run's may not have them, or not have them yet.
    """
    found = []
    for stage in (stage for stage in stages if stage.state == "done"):
        rows = reader.rows(stage.folder / "results.json")
        name = {"name": task_of(rows[0])} if rows else {}
        paths = sorted(stage.folder.glob("instances/*.json"))
        found += [(path, {**value, **name}) for path in paths if (value := reader.json(path, {}))]
    return tuple(sorted(found, key=lambda pair: pair[1].get("target") != 1.0))
