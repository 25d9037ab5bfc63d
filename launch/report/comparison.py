"""The report of `trimline compare`: ablation tables, differences, sweeps and fronts over the runs of a folder."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import UserError
from data_prep.files import read_json, write_atomic
from launch.compare_table import (
    COMPARISON,
    COST,
    PAIRED_NOTE,
    cells_of,
    difference_in_words,
    lines_of,
    mean_in_words,
    paired_lines,
    paired_words,
    scores_of,
    uneven_note,
)
from launch.report.figures import Drawing, save_rows
from launch.report.html import hardware_in_words, page_environment, short_commit
from launch.report.means import mean_rows
from launch.report.pareto import draw_pareto
from launch.report.results import group_results
from launch.report.sweeps import Line, draw_differences, draw_sweep, flat, sweeps_of
from launch.report.trials import Trials
from launch.report.words import metric_name

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The variants' scores on one task at one target, or their time and memory."""

    name: str
    budget: str
    lines: Sequence[Line]
    columns: Sequence[tuple[str, str]] = ()
    """Name of the score in the lines, and its heading."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the comparison."""

    name: str
    variant: str
    budget: str
    seed: int
    state: str
    report: str
    """Address of its own report, from the comparison's folder; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template shows."""

    name: str
    state: str
    reference: str
    budgets: list[str]
    facts: list[tuple[str, str]]
    tables: list[Table]
    paired: list[tuple[Line, str, str]]
    """Differences on the same test instances, each in words: itself, and over seeds."""
    paired_note: str
    differences: list[Drawing]
    sweeps: list[Drawing]
    fronts: list[Drawing]
    runs: list[Run]
    command: str
    commit: str
    versions: list[tuple[str, str]]
    """Of the runs' software."""
    uneven: list[str]
    """That variants have different seeds, and what then tells them apart; empty where they have the same."""
    changes: list[tuple[str, str, str, str]]
    """(variant, setting, value, the reference's value)."""
    missing: list[str]


def write_comparison(folder: Path) -> Path:
    """Writes report.html into a comparison's folder, and its figures with their numbers into figures/.

    Args:
        folder: The `out` of a `trimline compare`, finished or not.

    Returns:
        The path of report.html.

    Raises:
        UserError: There is no comparison.json, it cannot be read, or the disk is full.
    """
    try:
        data = read_json(folder / COMPARISON)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {COMPARISON}; give the `out` of a `trimline compare`") from error
    if not isinstance(data, dict) or not {"reference", "runs", "failures"} <= data.keys():
        raise UserError(f"{folder / COMPARISON} is not as `trimline compare` writes it; run that again, which goes on")
    page = _page(folder, data)
    for drawing in (*page.differences, *page.sweeps, *page.fronts):
        drawing.save(folder / "figures")
    save_rows(folder / "figures", "scores", scores_of(lines_of(data), str(data["reference"])))
    save_rows(folder / "figures", "differences", paired_lines(data))
    target = folder / "report.html"
    environment = page_environment()
    environment.filters |= {"mean_in_words": mean_in_words, "difference_in_words": difference_in_words}
    write_atomic(target, environment.get_template("comparison.html.j2").render(page=page))
    _log.info("wrote %s", target)
    return target


def _page(folder: Path, data: Mapping[str, Any]) -> Page:
    lines, reference, facts = lines_of(data), str(data["reference"]), data.get("facts") or {}
    budgets = list(dict.fromkeys(line["budget"] for line in lines))
    configs, unread = _configs(folder, data["runs"])
    swept = enumerate(sweeps_of(configs), 1)
    sweeps = [draw_sweep(sweep, budget, lines, number) for number, sweep in swept for budget in budgets]
    trials = Trials.read(folder, map(_name, data["runs"]))
    return Page(
        name=folder.resolve().name,
        state=_state(data),
        reference=reference,
        budgets=budgets,
        facts=_facts(facts, data, lines, trials),
        tables=[table for budget in budgets for table in _tables(budget, lines)],
        paired=[(line, *paired_words(line)) for line in paired_lines(data)],
        paired_note=PAIRED_NOTE,
        differences=[made for budget in budgets if (made := draw_differences(reference, budget, lines)) is not None],
        sweeps=[made for made in sweeps if made is not None],
        fronts=[made for budget in budgets for made in _fronts(data["runs"], budget, len(budgets) > 1)],
        runs=_runs(folder, data),
        command=str(facts.get("command") or ""),
        commit=str(facts.get("commit") or ""),
        versions=trials.versions(),
        changes=_changes(configs, reference),
        uneven=uneven_note(lines, reference),
        missing=[*_missing(lines, reference), *_unpaired(data), *unread, *trials.unread],
    )


def _state(data: Mapping[str, Any]) -> str:
    if data["failures"]:
        return "failed"
    return "unfinished" if len(data["runs"]) < int(data.get("trials", 0)) else "finished"


def _missing(lines: Sequence[Line], reference: str) -> list[str]:
    found = [] if lines else ["No results: no run is finished."]
    if lines and all(line["variant"] != reference for line in lines):
        found.append(f"No differences: no run of the reference, {reference}, is finished.")
    if lines and all(len(line["seeds"]) < 2 for line in lines):
        found.append(
            "No intervals: every variant has a single seed, and nothing says how much of a difference is chance."
        )
    return found


def _unpaired(data: Mapping[str, Any]) -> list[str]:
    if "paired" in data or not data["runs"]:
        return [str(sentence) for sentence in data.get("unpaired", ())]
    return [
        f"No differences on the same test instances: {COMPARISON} is of an older trimline; the same `trimline compare` "
        "again goes on and looks for them."
    ]


def _facts(
    facts: Mapping[str, Any], data: Mapping[str, Any], lines: Sequence[Line], trials: Trials
) -> list[tuple[str, str]]:
    seeds = sorted({seed for line in lines for seed in line["seeds"]})
    planned = f" of {data['trials']}" if "trials" in data else ""
    told = [
        ("Ran on", hardware_in_words(facts.get("hardware"))),
        ("Variants", ", ".join(dict.fromkeys(line["variant"] for line in lines))),
        ("Reference", str(data["reference"])),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Budgets", ", ".join(dict.fromkeys(line["budget"] for line in lines))),
        ("Runs", f"{len(data['runs'])}{planned} finished, {len(data['failures'])} failed"),
        *trials.told(),
        ("Commit", ", ".join(map(short_commit, trials.commits() or [str(facts.get("commit") or "")]))),
    ]
    return [(name, text) for name, text in told if text]


def _tables(budget: str, lines: Sequence[Line]) -> list[Table]:
    """A table for each task and target, then time and memory."""
    own = [line for line in lines if line["budget"] == budget]
    cells = cells_of(own)
    found = []
    for task in dict.fromkeys(cell["task"] for cell in cells.values()):
        scored = [(name, cell) for name, cell in cells.items() if cell["task"] == task]
        scored.sort(key=lambda pair: bool(pair[1]["metric"] == COST))  # what they cost comes behind
        columns = [(name, _head(cell)) for name, cell in scored]
        with_scores = [line for line in own if any(name in line["metrics"] for name, _ in columns)]
        found.append(Table(name=task, budget=budget, lines=with_scores, columns=columns))
    return [*found, Table(name="time and memory", budget=budget, lines=own)]


def _head(cell: Mapping[str, Any]) -> str:
    return f"{cell['split']}: {metric_name(cell['metric'])}"


def _fronts(runs: Sequence[Mapping[str, Any]], budget: str, several: bool) -> list[Drawing]:
    named = f"-{budget}" if several else ""
    # At a single target nobody trades one for the other.
    tables = [each for each in group_results(mean_rows(runs, budget)) if len({line.target for line in each.lines}) > 1]
    return [made for table in tables if (made := draw_pareto(table, named)) is not None]


def _configs(folder: Path, runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The configuration of each variant's first run, and a sentence for each that cannot be read."""
    configs: dict[str, Mapping[str, Any]] = {}
    problems = []
    for run in runs:
        if run["variant"] in configs:
            continue
        path = folder / _name(run) / "config.yaml"
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            problems.append(f"{path.relative_to(folder)} cannot be read: {' '.join(str(error).split())}.")
            continue
        configs[run["variant"]] = value if isinstance(value, Mapping) else {}
    return configs, problems


def _changes(configs: Mapping[str, Mapping[str, Any]], reference: str) -> list[tuple[str, str, str, str]]:
    """In what each variant differs from the reference."""
    if reference not in configs:
        return []
    own = flat(configs[reference])
    found = []
    for variant, config in configs.items():
        other = flat(config)
        for key in sorted(own.keys() | other.keys()):
            if own.get(key) != other.get(key):
                found.append((variant, key, str(other.get(key, "")), str(own.get(key, ""))))
    return found


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['variant']}-{run['budget']}-{run['seed']}"


def _runs(folder: Path, data: Mapping[str, Any]) -> list[Run]:
    found = []
    for run in data["runs"]:
        name = _name(run)
        report = f"{name}/report.html" if (folder / name / "report.html").is_file() else ""
        about = {"variant": run["variant"], "budget": run["budget"], "seed": run["seed"]}
        found.append(Run(name=name, state="done", report=report, **about))
    for name, why in data["failures"].items():
        variant, budget, seed = name.rsplit("-", 2)
        about = {"variant": variant, "budget": budget, "seed": int(seed)}
        found.append(Run(name=name, state=f"failed: {why}", report="", **about))
    return found
