"""Assembles report.html: one self-contained file, opened without a server."""

import base64
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_prep.errors import UserError
from data_prep.files import write_atomic
from launch.paired import RESAMPLED, own_differences, points
from launch.report import words
from launch.report.curve_figures import draw_curve, draw_speed
from launch.report.curves import Curve, queue_begins
from launch.report.faults import Fault, faults_of
from launch.report.figures import Drawing, save_rows
from launch.report.instances import Extremes, Told, drawings, extremes, told
from launch.report.pareto import draw_pareto
from launch.report.quoted import SOURCE, Quoted, comparable, of_data, quoted
from launch.report.recipe import began_from_weights, recipe_facts
from launch.report.results import TaskTable, group_results
from launch.report.run_folder import RunFolder, Stage, read_run
from launch.report.survivor_rows import survivor_rows
from launch.report.survivors import Frame, Panel, Picture, read_pictures
from launch.report.timeline import timeline
from launch.spent import spent

_log = logging.getLogger(__name__)

ANALYSES = "analyses"
"""Folder inside a run folder where `trimline analyse` leaves figures."""
ANALYSIS = "analysis"
"""What the titles of its figures say of where they are from."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template shows, besides the run folder itself."""

    run: RunFolder
    tables: list[TaskTable]
    curves: list[tuple[Drawing | None, Drawing | None]]
    """Of each stage that trained, how it learned and how fast it went."""
    fronts: list[Drawing]
    paired: list[dict[str, Any]]
    """By how much trimmed models differ from the untrimmed one on the same instances."""
    published: Mapping[str, list[Quoted]]
    """By task what `quoted_source` says of the run's backbone."""
    instances: list[Drawing]
    """What trimming does with single instances."""
    extremes: list[Extremes]
    pictures: list[Picture]
    analyses: list[Drawing]
    """Figures of `trimline analyse`, which lie in the run folder."""
    faults: list[Fault]
    mixed: list[tuple[str, str, Mapping[str, Any]]]
    """(stage, data set, {"units", "share", "epochs"}) of what training drew."""
    pretrained: bool
    """Whether there is a model to analyse."""
    missing: list[str]
    """Sentences on what a reader would expect and does not find, each with its reason."""
    quoted_source: str = SOURCE
    paired_note: str = RESAMPLED


def write_report(run: Path) -> Path:
    """Writes report.html into a run folder, and its figures with their numbers into figures/.

    An unfinished run gets a report of what there is, which says what is missing.

    Args:
        run: the run folder.

    Returns:
        The path of report.html.

    Raises:
        UserError: where `run` is not a run folder, or the disk is full.
    """
    page = _page(read_run(run))
    curves = [drawing for pair in page.curves for drawing in pair if drawing is not None]
    for drawing in (*curves, *page.fronts, *page.instances):
        drawing.save(run / "figures")
    save_rows(run / "figures", "results", page.run.results)
    save_rows(run / "figures", "differences", page.paired)
    survivors = [row for each in page.run.survivors for row in survivor_rows(each.entries, each.task)]
    save_rows(run / "figures", "survivors", survivors)
    target = run / "report.html"
    write_atomic(target, _render(page))
    _log.info("wrote %s", target)
    return target


def _page(run: RunFolder) -> Page:
    tables = sorted(group_results(run.results), key=lambda table: not table.has_targets)  # what was trimmed first
    published = {table.task: of_data(quoted(_backbone(run), table.kind), table, _data_name(run)) for table in tables}
    fronts = [
        draw_pareto(table, published=comparable(table, published[table.task], _data_name(run))) for table in tables
    ]
    drawn = [drawing for drawing in fronts if drawing is not None]
    drawn_by = [read_pictures(each.entries, each.folder, each.task) for each in run.survivors]
    pictures = [picture for found, _ in drawn_by for picture in found]
    problems = [problem for _, found in drawn_by for problem in found]
    analyses, unshown = _analyses(run.path / ANALYSES)
    models, untold = _told(run)
    shown, lost = extremes(models)
    paired = own_differences(run.path, int(run.facts.get("seed") or 0), run.results)
    unshown += [*untold, *lost, *paired.missing]
    return Page(
        run=run,
        tables=tables,
        curves=[_curves(run, stage, stage.curve) for stage in run.stages if stage.curve is not None],
        fronts=drawn,
        paired=paired.rows,
        published={task: rows for task, rows in published.items() if rows},
        instances=drawings(models),
        extremes=shown,
        pictures=pictures,
        analyses=analyses,
        faults=faults_of(run.stages),
        mixed=_mixed(run.stages),
        pretrained=bool(run.config.get("pretrained"))
        or any(stage.name == "pretrain" and stage.state == "done" for stage in run.stages),
        missing=[*_missing(run, drawn, pictures, analyses), *problems, *unshown, *run.unreadable],
    )


def _curves(run: RunFolder, stage: Stage, curve: Curve) -> tuple[Drawing | None, Drawing | None]:
    whole = stage.name == "pretrain" and stage.state == "done"
    engine = run.config.get("engine")
    clip = engine.get("grad_clip") if isinstance(engine, Mapping) else None
    queue_at = queue_begins(run.config, curve) if whole else None
    clip = float(clip) if isinstance(clip, int | float) else None
    return draw_curve(stage.name, curve, queue_at, clip), draw_speed(stage.name, curve)


def _analyses(folder: Path) -> tuple[list[Drawing], list[str]]:
    """The figures of a folder, and a sentence for each one that cannot be shown."""
    found, problems = [], []
    for path in sorted(folder.glob("*.svg")):
        try:
            drawing = Drawing.load(path)
            # What evaluation saw has figures of the same kinds; older analyses do not say that they are one.
            named = drawing.title if ANALYSIS in drawing.title else f"{drawing.title} ({ANALYSIS})"
            found.append(drawing.renamed(f"analysis-{drawing.name}", named))
        except UserError as error:
            problems.append(f"{error}.")
    return found, problems


def _told(run: RunFolder) -> tuple[list[Told], list[str]]:
    """What evaluation saw of single instances, and a sentence for each file that does not say it."""
    found, problems = [], []
    for path, value in run.instances:
        try:
            found.append(told(value, path.parent, value.get("name")))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path.relative_to(run.path)} does not tell of instances: {error!r}.")
    return found, problems


def _backbone(run: RunFolder) -> str:
    model = run.config.get("model")
    return str(model.get("backbone", "")) if isinstance(model, Mapping) else ""


def _missing(run: RunFolder, fronts: list[Drawing], pictures: list[Picture], analyses: list[Drawing]) -> list[str]:
    found = [_unfinished(stage) for stage in run.stages if stage.state != "done"]
    if not run.stages:
        found.append("No stage has begun.")
    unscored = [told for stage in run.stages for told in stage.unscored]
    scored = {(str(row.get("stage")), str(row.get("split"))) for row in run.results}
    partly = [(str(told["model"]), str(told["split"])) in scored for told in unscored]
    found += [
        f"{'Not all' if some else 'No'} scores of {told['model']} on {told['split']}: {told['why']}."
        for told, some in zip(unscored, partly, strict=True)
    ]
    if not run.results and not unscored:
        found.append("No results: no evaluation has finished.")
    trims = any(stage.name.startswith("trim") for stage in run.stages)
    if run.targets == []:
        found.append("No trimmed models: this recipe asks for none (trim.targets is empty).")
    elif not trims and run.stages:
        found.append("No trimmed models: no trim stage has begun.")
    elif run.results and not fronts and all(partly):
        found.append("No accuracy against computation: fewer than two models with different costs were measured.")
    accounted = run.instances or any(each.name.startswith("analysis-cost-") for each in analyses)
    # Of captions there is none.
    captions = all(stage.name.startswith("trim-captioning") for stage in run.stages if stage.name.startswith("trim"))
    captions |= {trim.get("task") for trim in run.trims if trim.get("targets")} == {"captioning"}
    if trims and run.results and not accounted and not captions:
        found.append(
            "No account of single instances: it was evaluated before there was one; "
            f"trimline analyse trimming {run.path} makes it."
        )
    if not pictures:
        found.append(f"No surviving patches: {_why_no_pictures(run)}.")
    if not run.splits:
        found.append("No data account: no split has been written.")
    if not run.facts:
        found.append("No hardware, versions and command: run.json is not there.")
    if not run.config_text:
        found.append("No configuration: config.yaml is not there.")
    return found


def _why_no_pictures(run: RunFolder) -> str:
    drawn = any(each.entries for each in run.survivors)
    if any(stage.name.startswith("survivors") and stage.state == "done" for stage in run.stages) and not drawn:
        return "none were asked for (evaluate.pictures), or the task shows two pictures at once"
    if drawn:
        return "no model of this recipe removes any"
    return "the stage that records them has not finished"


def _unfinished(stage: Stage) -> str:
    share = "" if stage.done_share is None else f" after {100 * stage.done_share:.0f}% of its work"
    reason = f": {stage.error}" if stage.error else ""
    if stage.state == "failed":
        return f"Stage {stage.name} failed{share}{reason}; the same command again continues from its checkpoint."
    state = "still running, or was cut off," if stage.state == "running" else stage.state
    return f"Stage {stage.name} is {state}{share}{reason}."


def page_environment() -> jinja2.Environment:
    """The templates of pages, with the filters that their common parts use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launch.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": words.duration,
        "moment": words.moment,
        "number": words.number,
        "metric_name": words.metric_name,
        "download": _download,
        "frames_data": _frames_data,
        "points": points,
    }
    environment.globals |= {"words": words, "absent": words.ABSENT, "frame_words": _frame_words, "safe": Markup}
    return environment


def _render(page: Page) -> str:
    run = page.run
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            run=run,
            state=_state(run),
            began=began_from_weights(run.config),
            command=_command(run.facts),
            facts=_facts(run),
            versions=_pairs(run.facts.get("versions")),
            skipped=_training_skips(run.stages),
            timeline=timeline(run.stages),
        )
    )


def _download(drawing: Drawing) -> str:
    """The numbers of a figure as a data: address, so that they travel with the page."""
    return "data:text/csv;base64," + base64.b64encode(drawing.csv.encode()).decode()


def _frame_words(panel: Panel, frame: Frame) -> str:
    """How much a frame keeps."""
    total = frame.rows * frame.columns
    into = "" if frame.merged is None else f" into {frame.merged}"
    merged = f", the others merged{into}" if frame.merged != 0 and frame.kept < total else ""
    text = f"{frame.kept} of {total} patches{merged}"
    if not panel.tokens:
        return text
    return f"{text} · {len(panel.tokens) - len(frame.dropped_tokens)} of {len(panel.tokens)} tokens"


def _frames_data(panel: Panel) -> list[dict[str, Any]]:
    """What the page's script needs to draw each frame of a panel."""
    return [
        {
            "name": frame.name,
            "gone": frame.gone,
            "fresh": frame.fresh,
            "dropped": frame.dropped_tokens,
            "freshTokens": frame.fresh_tokens,
            "words": _frame_words(panel, frame),
        }
        for frame in panel.frames
    ]


def _state(run: RunFolder) -> str:
    """`finished`, `failed` or `unfinished`."""
    states = {stage.state for stage in run.stages}
    if "failed" in states:
        return "failed"
    return "finished" if states == {"done"} else "unfinished"


def _command(facts: Mapping[str, Any]) -> str:
    command = facts.get("command") or ""
    return command if isinstance(command, str) else shlex.join(map(str, command))


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What is told first: what it ran on, when and how long."""
    facts, took = run.facts, "Took"
    seconds = spent(facts, run.path.glob("stages/*/*")) or None
    if seconds is None:
        took, seconds = "Took so far, all stages", sum(stage.seconds or 0.0 for stage in run.stages) or None
    told = [
        *recipe_facts(run.config),
        ("Ran on", hardware_in_words(facts.get("hardware"))),
        (took, words.duration(seconds)),
        ("Data", _data(run)),
        ("Seed", str(facts.get("seed", ""))),
        ("Stages", ", ".join(stage.name for stage in run.stages)),
        ("Commit", short_commit(str(facts.get("commit") or ""))),
        ("Started", words.moment(facts.get("started"))),
        ("Finished", words.moment(facts.get("finished"))),
        ("Restarts", str(sum(stage.restarts for stage in run.stages))),
    ]
    return [(name, text) for name, text in told if text and text != words.ABSENT]


def hardware_in_words(value: Any) -> str:
    """A machine in a line: `Example CPU, 2 CPUs, 8 GiB memory, 0 GPUs, Linux x86_64`."""
    if not isinstance(value, Mapping):
        return str(value or "")
    units = {"cpus": "{} CPUs", "memory_gib": "{} GiB memory", "gpus": "{} GPUs", "processor": "{}", "system": "{}"}
    order = ("processor", "cpus", "memory_gib", "gpus", "system")
    names = [*(name for name in order if name in value), *(name for name in value if name not in order)]
    return ", ".join(units.get(name, name + " {}").format(value[name]) for name in names if value[name] != "")


def short_commit(commit: str) -> str:
    """The first ten digits, with the mark of a changed checkout."""
    digits, plus, changes = commit.partition("+")
    return digits[:10] + plus + changes


def _data_name(run: RunFolder) -> str:
    settings = run.config.get("data")
    return str(settings.get("name", "")) if isinstance(settings, Mapping) else ""


def _data(run: RunFolder) -> str:
    """The data set with the samples of its splits."""
    name = _data_name(run)
    sizes = ", ".join(f"{split.name} {split.written:,}" for split in run.splits if split.written is not None)
    return f"{name}: {sizes}" if name and sizes else name or sizes


def _pairs(value: Any) -> list[tuple[str, str]]:
    return [(str(name), str(entry)) for name, entry in value.items()] if isinstance(value, Mapping) else []


def _training_skips(stages: tuple[Stage, ...]) -> list[tuple[str, str, int]]:
    """(stage, reason, samples) that training left out because they could not be read."""
    found = []
    for stage in stages:
        listed = stage.bad_samples if stage.curve is not None else {}  # evaluations have such lists too
        skipped = stage.outputs.get("bad_samples") or listed or stage.outputs.get("skipped")
        if isinstance(skipped, Mapping):
            found += [(stage.name, str(reason), int(count)) for reason, count in skipped.items()]
        elif isinstance(skipped, int | float) and skipped:
            found.append((stage.name, "all reasons", int(skipped)))
    return found


def _mixed(stages: tuple[Stage, ...]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(stage, data set, {"units", "share", "epochs"}) of what training drew from each of its data sets."""
    return [
        (stage.name, str(name), drawn)
        for stage in stages
        if isinstance(mix := stage.outputs.get("mix"), Mapping)
        for name, drawn in mix.items()
        if isinstance(drawn, Mapping)
    ]
