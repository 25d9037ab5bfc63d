"""`trimline analyse trimming RUN`: what trimmed models do with each instance of a split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.answers import Answer
from launch.config import RunConfig
from launch.exposure import in_caption
from launch.report.html import ANALYSES, ANALYSIS
from launch.report.instances import Told, drawings, told
from launch.report.table import aligned
from launch.tasks import Task, tasks_of
from launch.trained_run import TrainedRun, config_of
from pipeline.evaluation.classes import said_on
from pipeline.evaluation.config import source_of
from pipeline.exports import load_classification_model, method_of
from pipeline.measure.instances import INSTANCES, write_instances
from pipeline.metrics.tally import TALLIES
from pipeline.process import Process
from pipeline.trimming.target import Target

BATCH = 64


def trimming_command(
    folder: Path, split: str | None, samples: int, out: Path | None, task: str | None = None
) -> Answer:
    """`trimline analyse trimming RUN`: what evaluation leaves for the report, of any split and of older runs.

    Args:
        folder: Of a run that got as far as trimming.
        split: Of its own, or a folder of indexed shards; None for the first on which it evaluates trimmed models.
        samples: Statements or questions to look at, the first ones.
        out: Folder of figures and numbers; None for one in the run folder, which its report shows.
        task: Which of the run's; None for the first that has fine-tuned models.

    Raises:
        UserError: There is no fine-tuned model, or no such split.
    """
    if samples < 1:
        raise UserError(f"--samples {samples} must be at least 1")
    chosen, exports = _fine_tuned(folder, config_of(folder), task)
    run = TrainedRun.of(folder, split or next(iter(chosen.config.evaluate.statement_splits), None))
    run = replace(run, config=chosen.config)
    if run.config.trim.task not in TALLIES:
        able = ", ".join(TALLIES)
        raise UserError(f"{folder} was fine-tuned for {run.config.trim.task}; trimming is looked at for {able}")
    place = folder / ANALYSES if out is None else out
    exposure = run.exposure_to(run.split_folder, fine_tuned=True)
    models = [_seen(run, chosen, export, samples, place / INSTANCES) for export in exports]
    models.sort(key=lambda each: bool(each.kept))  # the untrimmed one first
    found = drawings(models, in_caption([exposure]), ANALYSIS)
    for drawing in found:
        drawing.save(place)
    head = f"split {run.split}, {len(models[0].gmacs)} {models[0].task} instances"
    names = ", ".join(f"{drawing.name}.svg" for drawing in found)
    data: dict[str, Any] = {"run": str(folder), "split": run.split, "held_out": exposure.held_out}
    data |= {"chose_weights": exposure.chose, "models": [_numbers(each) for each in models]}
    told_where = f"figures, with numbers as .csv, in {place}: {names}; the cheapest and the dearest in {INSTANCES}/"
    return 0, data, "\n".join([head, exposure.words, *_table(models), told_where])


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


def _seen(run: TrainedRun, task: Task, export: Path, samples: int, place: Path) -> Told:
    """What one model does."""
    stage = export.parent.name
    process = Process(device=run.device)
    model, described = load_classification_model(export)
    inputs = run.inputs.of_export(described)  # fine-tuning may have had larger pictures
    model, source = model.to(run.device), source_of(inputs, run.split, run.tokenizer)
    said = said_on(model, source, source.batches(model.classes.text, BATCH, process, samples), process)
    target = Target.parse(described["target"])
    row = {
        "stage": stage,
        "method": method_of(described),
        "target": target.amount if target.unit == "x" else str(target),
        "task": model.classes.task,
        "split": Path(run.split).name,
        "samples": said.samples,
        **said.costs.row(),
    }
    path = place / f"{stage}-{row['split']}.json"
    write_instances(path, row, said.instances, said.costs.macs)
    return told(read_json(path), place, task.title)


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
