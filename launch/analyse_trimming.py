"""`trimline analyse trimming RUN|EXPORT`: what trimmed models do with each instance of a split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.answers import Answer
from launch.config import RunConfig
from launch.exposure import Exposure, in_caption
from launch.model_names import split_in_file
from launch.report.html import ANALYSES, ANALYSIS
from launch.report.instances import Told, drawings, told
from launch.report.table import aligned
from launch.tasks import Task, tasks_of
from launch.trained_export import TrainedExport, is_export
from launch.trained_run import TrainedRun, config_of
from pipeline.evaluation.classes import said_on
from pipeline.evaluation.config import source_of
from pipeline.evaluation.source import Source
from pipeline.exports import load_classification_model, method_of
from pipeline.measure.instances import INSTANCES, write_instances
from pipeline.metrics.tally import TALLIES
from pipeline.process import Process
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.target import Target

BATCH = 64


def trimming_command(
    folder: Path, split: str | None, samples: int, out: Path | None, task: str | None = None
) -> Answer:
    """`trimline analyse trimming RUN`: what evaluation leaves for the report, of any split and of older runs.

    Args:
        folder: Of a run that got as far as trimming, or the export of a fine-tuned model.
        split: Of the run's own, or a folder of indexed shards; None for the first on which it evaluates trimmed models.
        samples: Statements or questions to look at, the first ones.
        out: Folder of figures and numbers; None for one in `folder`; that of a run is shown by its report.
        task: Which of the run's; None for the first that has fine-tuned models.

    Raises:
        UserError: There is no fine-tuned model, or no such split.
    """
    if samples < 1:
        raise UserError(f"--samples {samples} must be at least 1")
    looked = _of_export(folder, split, task) if is_export(folder) else _of_run(folder, split, task)
    place = folder / ANALYSES if out is None else out
    exposure = looked.exposure
    models = [_seen(looked, name, opened, samples, place / INSTANCES) for name, opened in looked.models]
    models.sort(key=lambda each: bool(each.kept))  # the untrimmed one first
    found = drawings(models, in_caption([exposure]), ANALYSIS)
    for drawing in found:
        drawing.save(place)
    head = f"split {looked.split}, {len(models[0].gmacs)} {models[0].task} instances"
    names = ", ".join(f"{drawing.name}.svg" for drawing in found)
    data: dict[str, Any] = {"run": str(folder), "split": looked.split, "held_out": exposure.held_out}
    data |= {"chose_weights": exposure.chose, "models": [_numbers(each) for each in models]}
    told_where = f"figures, with numbers as .csv, in {place}: {names}; the cheapest and the dearest in {INSTANCES}/"
    return 0, data, "\n".join([head, exposure.words, *_table(models), told_where])


_Opener = Callable[[], tuple[ClassificationModel, dict[str, Any], Source]]


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """What is looked at.

    Attributes:
        split: Its name in the run, or its folder.
        exposure: What its models know of it.
        title: Of the task.
        device: Where they run.
        models: Name and opener of each: the model, what its export says of it, and its way of reading the split.
    """

    split: str
    exposure: Exposure
    title: str
    device: str
    models: Sequence[tuple[str, _Opener]]


def _of_run(folder: Path, split: str | None, task: str | None) -> _Looked:
    chosen, exports = _fine_tuned(folder, config_of(folder), task)
    run = TrainedRun.of(folder, split or next(iter(chosen.config.evaluate.statement_splits), None))
    run = replace(run, config=chosen.config)
    _check_task(folder, run.config.trim.task)
    return _Looked(
        split=run.split,
        exposure=run.exposure_to(run.split_folder, fine_tuned=True),
        title=chosen.title,
        device=run.device,
        models=[(export.parent.name, partial(_opened, run, export)) for export in exports],
    )


def _opened(run: TrainedRun, export: Path) -> tuple[ClassificationModel, dict[str, Any], Source]:
    model, described = load_classification_model(export)
    inputs = run.inputs.of_export(described)  # fine-tuning may have had larger pictures
    return model.to(run.device), described, source_of(inputs, run.split, run.tokenizer)


def _of_export(folder: Path, split: str | None, task: str | None) -> _Looked:
    if task is not None:
        raise UserError(f"--task {task} is for a run, and {folder} is an export, of one task; leave it out")
    export = TrainedExport.of(folder, split)
    _check_task(folder, export.kind)

    def opened() -> tuple[ClassificationModel, dict[str, Any], Source]:
        model, source = export.opened
        assert isinstance(model, ClassificationModel)
        return model, read_json(folder / "config.json"), source

    whole = folder.absolute()
    name = whole.parent.name if whole.name == "export" else whole.name
    return _Looked(
        split=export.split, exposure=export.exposure, title=export.kind, device=export.device, models=[(name, opened)]
    )


def _check_task(folder: Path, task: str) -> None:
    if task not in TALLIES:
        able = ", ".join(TALLIES)
        raise UserError(f"{folder} is no model of a task where trimming is looked at: it has {task}, wanted is {able}")


def _fine_tuned(folder: Path, config: RunConfig, name: str | None) -> tuple[Task, list[Path]]:
    """A task of a run, and the exports of its models."""
    tasks = tasks_of(config)
    wanted = [task for task in tasks if name in (None, task.title)]
    if not wanted:
        raise UserError(f"--task {name}: {folder} is fine-tuned for {', '.join(task.title for task in tasks)}")
    for task in sorted(wanted, key=lambda each: each.config.trim.task not in TALLIES):
        if exports := sorted(folder.glob(f"stages/trim-{task.title}-*/export")):
            return task, exports
    raise UserError(f"{folder} has no fine-tuned model yet: let a trim stage end (trimline status {folder})")


def _seen(looked: _Looked, stage: str, opened: _Opener, samples: int, place: Path) -> Told:
    """What one model does."""
    process = Process(device=looked.device)
    model, described, source = opened()
    said = said_on(model, source, source.batches(model.classes.text, BATCH, process, samples), process)
    target = Target.parse(described["target"])
    row = {
        "stage": stage,
        "method": method_of(described),
        "target": target.amount if target.unit == "x" else str(target),
        "task": model.classes.task,
        "split": split_in_file(looked.split),
        "samples": said.samples,
        **said.costs.row(),
    }
    path = place / f"{stage}-{row['split']}.json"
    write_instances(path, row, said.instances, said.costs.macs)
    return told(read_json(path), place, looked.title)


def _groups(model: Told) -> dict[str, float]:
    """Mean share of each group that is kept, over its places."""
    shares: dict[str, list[float]] = {}
    for place in model.kept:
        shares.setdefault(place["group"], []).append(place["mean"])
    return {group: sum(values) / len(values) for group, values in shares.items()}


def _numbers(model: Told) -> dict[str, Any]:
    costs = {"mean": sum(model.gmacs) / len(model.gmacs), "least": min(model.gmacs), "most": max(model.gmacs)}
    modules = {"modules": dict(model.modules), "full_modules": dict(model.full_modules)}
    kept = {"kept": _groups(model), "places": [dict(place) for place in model.kept]}
    return {"stage": model.stage, "gmacs": costs, "full_gmacs": model.full_gmacs, **modules, **kept}


def _table(models: Sequence[Told]) -> list[str]:
    groups = list(dict.fromkeys(group for each in models for group in _groups(each)))
    cells = [["model", "mean GMACs", "least", "most", "of untrimmed", *(f"{group} kept" for group in groups)]]
    for each in models:
        costs, kept = _numbers(each)["gmacs"], _groups(each)
        amounts = [f"{costs[name]:.4g}" for name in ("mean", "least", "most")]
        shares = [f"{kept[group]:.0%}" if group in kept else "-" for group in groups]
        cells.append([each.label, *amounts, f"{costs['mean'] / each.full_gmacs:.2f}", *shares])
    return aligned(cells, left=1)
