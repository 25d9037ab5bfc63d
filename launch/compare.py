"""`trimline compare`: the same run with one thing changed at a time, over several seeds, against a reference.

Each run is a `trimline run` in a process and a folder of its own, so that one may fail, and the whole goes on where it
stopped. Two questions may be asked at once: with the same samples seen, and with the same time.
"""

import concurrent.futures
import json
import logging
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.lock import FolderLock
from launch import machine
from launch.compare_table import COMPARISON
from launch.config import RunConfig, TaskConfig
from launch.given import read_run
from launch.paired import JudgedRun, paired_differences
from launch.reading import below
from launch.recipes import find_recipe
from launch.result_rows import COMPARED, RECALLS
from launch.run_log import LOG, log_file
from launch.signals import stopped_by_sigterm, uninterrupted
from launch.stages import RESULTS
from launch.tasks import tasks_of, training_stages
from pipeline.limits import above_zero, at_least
from pipeline.progress import read_metrics
from pipeline.trimming.target import Target

log = logging.getLogger(__name__)

Budget = Literal["samples", "minutes"]
_ENDLESS = 10**9
_LATER = "Differences on the same test instances are reckoned when all runs have ended."


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared.

    Attributes:
        out: Folder of all runs, and of comparison.json.
        base: YAML files of the run that everything shares.
        shared: Overrides that everything shares, such as ``pretrain.loop.samples: 16000``.
        reference: Name of the variant that the others are compared with.
        variants: For each name its overrides.
        seeds: Of model and data; a variant and the reference of the same seed are a pair.
        budgets: ``samples``: as many as the recipe says; ``minutes``: `minutes` of training, however many that is.
        minutes: Of training in each run, for the second.
        parallel: Runs side by side; times are comparable as long as it stays the same.
        share: Whether the reference of each seed runs first, and the others take its finished stages over, as far as
            they would be made just so: pre-training is then done once a seed. Their times are then the reference's.
    """

    out: str
    base: tuple[str, ...]
    shared: dict[str, Any] = field(default_factory=dict)
    reference: str
    variants: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[Budget, ...] = ("samples",)
    minutes: float = 5.0
    parallel: int = 1
    share: bool = False

    def __post_init__(self) -> None:
        at_least(self, "compare", 1, "parallel")
        above_zero(self, "compare", "minutes")
        if self.reference not in self.variants:
            raise UserError(f"reference={self.reference!r} is none of the variants {', '.join(self.variants)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or not self.budgets or not self.base:
            raise UserError("compare needs different seeds, at least one budget, and a base configuration")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the comparison."""

    variant: str
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant}-{self.budget}-{self.seed}"


def trials(config: CompareConfig) -> list[Trial]:
    """All runs: seed by seed, so that whatever is finished can be compared.

    Where the others wait for their reference, as many references as run side by side are always ahead of them.
    """
    groups = [
        [Trial(variant=variant, budget=budget, seed=seed) for variant in config.variants]
        for seed in config.seeds
        for budget in config.budgets
    ]
    if not config.share:
        return [trial for group in groups for trial in group]
    references = [reference_of(config, group[0]) for group in groups]
    ordered = references[: config.parallel]
    for number, group in enumerate(groups):
        ordered += [trial for trial in group if trial not in references]
        ordered += references[config.parallel + number : config.parallel + number + 1]
    return ordered


def reference_of(config: CompareConfig, trial: Trial) -> Trial:
    """The run that a trial is compared with."""
    return Trial(variant=config.reference, budget=trial.budget, seed=trial.seed)


def overrides_of(config: CompareConfig, trial: Trial) -> list[str]:
    """A trial's overrides, as on the command line."""
    values = {**config.shared, **config.variants[trial.variant], "seed": trial.seed, "data.seed": trial.seed}
    values |= {"out": str(Path(config.out).expanduser() / trial.name)}
    if trial.budget == "minutes":
        # More than anything can see in the time: whichever bound comes first ends a training.
        values |= {"budget.minutes": config.minutes, "pretrain.loop.samples": _ENDLESS, "trim.loop.samples": _ENDLESS}
    else:
        values["budget.minutes"] = None
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def compare(config: CompareConfig, told: Callable[[str], None]) -> dict[str, Any]:
    """Runs what is not finished and gathers what is.

    Args:
        config: What is compared.
        told: Is given a line whenever a run ends.

    Raises:
        UserError: A variant's configuration is wrong; nothing is started then.
    """
    files = [find_recipe(name) for name in config.base]
    words = {trial: settled(files, overrides_of(config, trial), trial) for trial in trials(config)}
    out = Path(config.out).expanduser()
    check_full_models({trial.variant: read_run(files, given) for trial, given in words.items()}, out)
    out.mkdir(parents=True, exist_ok=True)
    runs, failures = _Runs(), dict[str, str]()
    with (
        FolderLock(out),
        stopped_by_sigterm(),
        log_file(out / LOG),
        concurrent.futures.ThreadPoolExecutor(config.parallel) as pool,
    ):
        jobs: dict[concurrent.futures.Future[str], Trial] = {}
        for trial, overrides in words.items():
            first = next((job for job, other in jobs.items() if other == reference_of(config, trial)), None)
            shared = (first, out / reference_of(config, trial).name) if config.share and first is not None else None
            jobs[pool.submit(runs.run, files, overrides, shared)] = trial
        try:
            for job in concurrent.futures.as_completed(jobs):
                trial, error = jobs[job], job.result()
                if error:
                    failures[trial.name] = error
                told(f"{trial.name}: {error or 'done'}")
                _keep(out, gathered(config, failures) | {"paired": [], "unpaired": [_LATER]})
        except BaseException:
            # The pool would otherwise go on with every run that has not begun.
            pool.shutdown(wait=False, cancel_futures=True)
            with uninterrupted():
                runs.stop()
            raise
        # Only now: with many runs it takes a minute, which those that are timed beside it would pay.
        data = gathered(config, failures)
        judged = paired_differences([_judged(config, run) for run in data["runs"]], config.reference)
        data |= {"paired": judged.rows, "unpaired": judged.missing}
        _keep(out, data)
    return data


def _keep(out: Path, data: Mapping[str, Any]) -> None:
    write_json(out / COMPARISON, data)
    _report(out)


def _report(out: Path) -> None:
    """Writes what there is so far; no report is worth the runs that are still to come."""
    from launch.report.comparison import write_comparison  # matplotlib comes with it

    try:
        write_comparison(out)
    except (OSError, UserError) as error:
        log.warning("the comparison's report could not be written: %s", error)
    except Exception as error:  # a mistake of ours: it must be seen, and must not end trials that are under way
        log.exception("the comparison's report could not be written: %s: %s", type(error).__name__, error)


def settled(files: Sequence[Path], overrides: list[str], trial: Trial) -> list[str]:
    """A trial's overrides once they are read, with those that depend on what else is read.

    Checkpoints that go elsewhere get a place of the trial's own, and further tasks end with their time as the first.

    Raises:
        UserError: The configuration is wrong.
    """
    run = read_run(files, overrides)
    if not training_stages(run):
        raise UserError(f"pretrained={run.pretrained}, and trim.targets=[]: nothing is trained; name targets")
    more = [f"--tasks.{name}.trim.loop.samples={_ENDLESS}" for name in run.tasks if trial.budget == "minutes"]
    if run.checkpoint.path is not None:
        more.append(f"--checkpoint.path={run.checkpoint.path.rstrip('/')}/{trial.name}")
    return [*overrides, *more]


def check_full_models(variants: Mapping[str, RunConfig], out: Path) -> None:
    """Refuses variants whose speed-ups count from different full models, where nobody has asked for that.

    One that has results already goes on with a warning: other settings would have it begin anew.

    Args:
        variants: By name.
        out: Folder of the comparison.

    Raises:
        UserError: By default some keep pre-training's pruning, which the methods of others cannot; or a variant is to
            keep what it cannot.
    """
    by_task: dict[str, dict[str, RunConfig]] = {}
    for variant, run in variants.items():
        for task in tasks_of(run):
            by_task.setdefault(task.key, {})[variant] = task.config
    for key, runs in by_task.items():
        try:
            _check_full_models(runs, out)
        except UserError as error:
            raise UserError(below(key, TaskConfig, str(error))) from error


def _check_full_models(variants: Mapping[str, RunConfig], out: Path) -> None:
    ratios = {
        name: run
        for name, run in variants.items()
        if any(target.unit == "x" and not target.is_full for target in map(Target.parse, run.trim.targets))
    }
    left = [name for name, run in ratios.items() if run.trim.leaves_pruning(run.model.backbone, run.pretrain.pruning)]
    kept = [name for name, run in ratios.items() if _keeps_pruning(name, run)]
    if not left or not kept:
        return
    differ = (
        f"speed-ups of {', '.join(kept)} count from a full model that keeps pre-training's pruning, those of "
        f"{', '.join(left)} from one that prunes nothing"
    )
    if not (out / COMPARISON).is_file():
        raise UserError(f"{differ}; set trim.keep_pruning=false in shared, or give targets in GFLOPs")
    log.warning("%s: do not compare these; %s holds results already, so the comparison goes on", differ, out)


def _keeps_pruning(name: str, run: RunConfig) -> bool:
    try:
        return run.trim.kept_pruning(run.model.backbone, run.pretrain.pruning) is not None
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from error


class _Runs:
    """The processes of the runs that are going on, so that none outlives the comparison."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(
        self,
        files: Sequence[Path],
        overrides: Sequence[str],
        shared: tuple[concurrent.futures.Future[str], Path] | None = None,
    ) -> str:
        """Carries out a run; returns why it failed, or nothing.

        Args:
            files: Its configuration.
            overrides: What it changes in them.
            shared: A run that ends first, and its folder, from which stages are taken over.
        """
        command = [sys.executable, "-m", "launch", "run", *map(str, files), *overrides]
        if shared is not None:
            concurrent.futures.wait([shared[0]])
            if (shared[1] / "stages").is_dir():
                command += ["--take_from", str(shared[1])]
        with self._lock:
            if self._stopped:
                return "not begun"
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            self._running.add(process)
        lines = [line for line in process.communicate()[1].splitlines() if line.strip()]
        with self._lock:
            self._running.remove(process)
        return "" if process.returncode == 0 else (lines[-1] if lines else f"exit code {process.returncode}")

    def stop(self) -> None:
        """Stops what is running as SIGTERM does: each run keeps what it has saved, and goes on from there next time."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _step_ms(folder: Path, stage: Mapping[str, Any]) -> float:
    """Median time of a step: a mean would hold whatever else the machine did meanwhile, and the restarts."""
    lines = read_metrics(folder / "metrics.jsonl")
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    typical = statistics.median(speeds) if speeds else stage["samples"] / stage["seconds"]
    return 1000 * stage["samples"] / stage["steps"] / typical


def gathered(config: CompareConfig, failures: Mapping[str, str]) -> dict[str, Any]:
    """What the finished runs gave: for each trial its results, speed and memory; differences on the same instances."""
    runs = []
    for trial in trials(config):
        folder = Path(config.out).expanduser() / trial.name
        # What a run that failed now has left may be of another configuration.
        if trial.name in failures or not (folder / RESULTS).is_file():
            continue
        trained = _trained_first(folder)
        stage = read_json(trained / "status.json")["outputs"]
        runs.append(
            {
                "variant": trial.variant,
                "budget": trial.budget,
                "seed": trial.seed,
                "samples": stage["samples"],
                "step_ms": _step_ms(trained, stage),
                "peak_bytes": stage["peak_bytes"],
                "results": read_json(folder / RESULTS),
            }
        )
    facts = {"command": machine.command(), "commit": machine.git_commit(), "hardware": machine.hardware()}
    planned = {"reference": config.reference, "trials": len(trials(config))}
    return {**planned, "runs": runs, "failures": dict(failures), "facts": facts}


def _trained_first(folder: Path) -> Path:
    """The training whose speed and memory are told: of a run that was given its model, the first fine-tuning."""
    planned: Mapping[str, Any] = read_json(folder / "run.json")["stages"]
    first = "pretrain" if "pretrain" in planned else next(name for name in planned if name.startswith("trim-"))
    return folder / "stages" / first


def _judged(config: CompareConfig, run: Mapping[str, Any]) -> JudgedRun:
    trial = Trial(variant=run["variant"], budget=run["budget"], seed=run["seed"])
    rows = [row for row in run["results"] if row["metric"] in (*COMPARED, *RECALLS)]
    return JudgedRun(**asdict(trial), folder=Path(config.out).expanduser() / trial.name, rows=rows)
