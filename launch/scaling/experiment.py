"""`trimline scale`: shards once, then each trial, the search for the largest batch, tables and report."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import write_atomic, write_json
from data_prep.index import indexed_splits
from data_prep.lock import FolderLock
from launch import machine
from launch.config import RunConfig
from launch.graph import Stage, fingerprints, run_graph
from launch.progress import ProgressDisplay
from launch.reading import as_json, dump_config, read_config
from launch.recipes import find_recipe
from launch.run import check_folder, make_folder
from launch.run_log import LOG, log_file
from launch.scaling.config import SCALE, ScaleConfig
from launch.scaling.grid import LeftOut, Settled, settle, steps_of, trials
from launch.scaling.probing import Prober, settle_probes
from launch.scaling.recommend import recommendation
from launch.scaling.rows import curve_of, goal_of, row_of, settings_of, with_goal
from launch.scaling.trial import FAILED, KILLED, OK, Work, carried_out
from launch.signals import stopped_by_sigterm
from launch.stages import shard_stage
from pipeline.data.shards import ShardFolder
from pipeline.engine import preflight_deepspeed
from pipeline.measure.scale_trial import TrialPlan
from pipeline.process import Process
from pipeline.tracking import open_tracker

TABLE, CONFIG = "scale.csv", "scale.yaml"
_GIB = 2**30


@dataclass(frozen=True)
class Ground:
    """What all trials stand on.

    Attributes:
        config: Of the experiment.
        files: Of the run that all share.
        out: Folder of the experiment.
        display: Is told what happens.
        digest: Of the data.
    """

    config: ScaleConfig
    files: Sequence[Path]
    out: Path
    display: ProgressDisplay
    digest: str


def scale(config: ScaleConfig) -> dict[str, Any]:
    """Runs what is not finished of an experiment, and writes its tables and its report.

    Returns:
        What stands in scale.json.

    Raises:
        UserError: A mistake found before anything starts; no trial came to its end; or no batch fits into the limit.
    """
    began, started = time.monotonic(), _now()
    files = [find_recipe(name) for name in config.base]
    settled, left_out = settle(config, files, trials(config))
    check_limits(config, [each.run for each in settled])
    searched = search_of(config, files)
    out = Path(config.out).expanduser().resolve()
    check_folder(out, CONFIG, "experiment")
    make_folder(out)
    with FolderLock(out), stopped_by_sigterm(), log_file(out / LOG), ProgressDisplay() as display:
        write_atomic(out / CONFIG, dump_config(config))
        _say_left_out(display, left_out)
        ground = Ground(config, files, out, display, _write_shards(settled[0].run, out, display))
        check_split(config, out / "data")
        rows, curves = _try_all(ground, settled)
        data = {
            "name": config.name,
            "started": started,
            **_facts(),
            "rows": rows,
            "curves": curves,
            "left_out": [{"name": each.trial.name, "reason": each.reason} for each in left_out],
            "notes": notes(config, settled[0].run, rows),
        }
        data = _write(out, data, began, None)  # what the trials gave stays, whatever becomes of the search
        if searched is not None:
            data = _write(out, data, began, _search(ground, searched))
    if config.track:
        _track(settled[0].run, config, out, data)
    refuse_nothing(config, data)
    return data


def check_limits(config: ScaleConfig, runs: Sequence[RunConfig]) -> None:
    """Refuses limits that mean nothing on this machine, and a fixed batch that no processes can share.

    Raises:
        UserError: Naming the key.
    """
    if any(run.engine.name == "deepspeed" for run in runs):
        preflight_deepspeed()
    on_gpu = bool(runs[0].cluster.gpus_per_worker)
    whole, whose = (
        (machine.gpu_memory_gib(), "this machine's GPU") if on_gpu else (machine.memory_gib(), "this machine")
    )
    for key, gib in (("limits", config.limits.memory_gib), ("largest", config.largest.memory_gib)):
        if gib is not None and whole is not None and gib > whole:
            raise UserError(f"{key}.memory_gib={gib:g} is more than the {whole:.1f} GiB of {whose}; give less")
    if on_gpu and runs[0].cluster.address is None and not machine.available_gpus():
        raise UserError(
            f"cluster.gpus_per_worker={runs[0].cluster.gpus_per_worker:g}, but nvidia-smi lists no GPU here; "
            "set it to 0 under shared, or start the experiment where there is one"
        )
    if config.judge.split is None:
        return
    for run in runs:
        unit = max(run.loader.streams, run.cluster.most)
        if config.judge.batch % run.loader.streams or config.judge.batch % run.cluster.most:
            raise UserError(
                f"judge.batch={config.judge.batch} must be a multiple of {run.loader.streams} streams (loader.streams) "
                f"and of {run.cluster.most} workers; try {unit * max(1, round(config.judge.batch / unit))}"
            )


def _say_left_out(display: ProgressDisplay, left_out: Sequence[LeftOut]) -> None:
    for each in left_out:
        display.say(f"{each.trial.name}: left out: {each.reason}")


def _write_shards(run: RunConfig, out: Path, display: ProgressDisplay) -> str:
    """Writes the shards that all trials read, where they are not there; returns a digest of all they depend on."""
    from launch.local_backend import LocalBackend

    stage: Stage = shard_stage(run, out, LocalBackend(0, 1))
    result = run_graph([stage], 0, display)
    failure = result.failures.get(stage.name)
    if failure is not None:
        if failure.by_user:
            raise UserError(failure.message)
        raise RuntimeError(failure.message)
    return fingerprints([stage])[stage.name]


def check_split(config: ScaleConfig, data: Path) -> None:
    """Refuses a split that is not there, or too small for a fixed batch.

    Raises:
        UserError: Naming those that there are.
    """
    split = config.judge.split
    if split is None:
        return
    there = [path.relative_to(data).as_posix() for path in indexed_splits(data)]
    if split not in there:
        raise UserError(f"judge.split={split} is not among the data's splits {', '.join(there)}; give one, or null")
    samples = len(ShardFolder(data / split))
    if samples < config.judge.batch:
        raise UserError(f"judge.batch={config.judge.batch} is more than the {samples} samples of {split}; give less")


def _try_all(ground: Ground, settled: Sequence[Settled]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each trial, and what is drawn of those that came to their end."""
    config, rows, curves = ground.config, list[dict[str, Any]](), dict[str, Any]()
    for each in settled:
        work = Work(each.trial.name, each.run, _plan(ground, each), config.limits.seconds)
        folder = ground.out / "trials" / work.name
        found = carried_out(work, folder, ground.out, ground.digest, ground.display)
        settings = settings_of(each.trial, each.run)
        rows.append(row_of(settings, found, config.warmup, config.judge.batch))
        ground.display.say(f"{work.name}: {_in_words(rows[-1])}")
        if found["status"] == OK:
            curves[work.name] = {**settings, **curve_of(found, config.warmup)}
    goal = goal_of(config.judge.goal, rows)
    return with_goal(rows, curves, goal), curves


def _plan(ground: Ground, each: Settled) -> TrialPlan:
    config, judge = ground.config, ground.config.judge
    memory = config.limits.memory_gib
    plan = TrialPlan(steps=steps_of(config, each.trial), memory_bytes=None if memory is None else int(memory * _GIB))
    if judge.split is None:
        return plan
    return replace(
        plan,
        evaluate_every=max(1, round(judge.every_samples / each.trial.global_batch)),
        evaluation_split=str(ground.out / "data" / judge.split),
        evaluation_batch=judge.batch,
    )


def _in_words(row: Mapping[str, Any]) -> str:
    if row["status"] != OK:
        return f"{row['status']}: {row['reason']}"
    loss = "" if row["fixed_loss"] is None else f", loss {row['fixed_loss']:.3f} on the fixed batch"
    return f"{row['samples_per_second']:.1f} samples/s, {row['peak_bytes'] / _GIB:.2f} GiB{loss}"


@dataclass(frozen=True)
class SearchOf:
    """The search for the largest batch: how many processes train together, and what each must stay within."""

    workers: int
    limit_bytes: int


def search_of(config: ScaleConfig, files: Sequence[Path]) -> SearchOf | None:
    """The search that is asked for; None for none: on a CPU without a limit, or where the GPU cannot be seen from here.

    Raises:
        UserError: Its probes cannot be made.
    """
    cluster, gib = read_config(RunConfig, files, _words(config)).cluster, config.largest.memory_gib
    if gib is None and cluster.gpus_per_worker:
        gib = machine.gpu_memory_gib()
    if gib is None:
        return None
    settle_probes(config, files, cluster.most)
    return SearchOf(cluster.most, int(gib * _GIB))


def _search(ground: Ground, of: SearchOf) -> dict[str, Any]:
    prober = Prober(
        ground.config, ground.files, ground.out, ground.digest, ground.display, of.workers, of.limit_bytes
    )  # fmt: skip
    return prober.compared()


def _words(config: ScaleConfig) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in config.shared.items()]


def _facts() -> dict[str, Any]:
    return {
        "command": machine.command(),
        "versions": machine.versions(),
        "commit": machine.git_commit(),
        "hardware": machine.hardware(),
    }


def notes(config: ScaleConfig, run: RunConfig, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the numbers."""
    objectives = run.pretrain.objectives
    among = "the whole update" if objectives.contrast_cache else "one part of an update over all workers"
    told = [
        f"One seed ({run.seed}); differences of a few percent between single trials are no difference.",
        "Step: the median, from asking for the batch to the end of the update, the wait for data with it. Looks at the "
        "fixed batch are left out, and loader processes stand still meanwhile.",
        f"Seconds to the goal: the first {config.warmup} updates (warm-up) count as the median of the later ones.",
        "GMACs: multiply-accumulates of matrix products, forward and backward; what is computed again to save memory "
        "counts once.",
        "Memory: the most that a worker held in its first steps; its loader's processes are not in it.",
    ]
    ahead = run.loader.workers * run.loader.prefetch
    if ahead:
        told.append(
            f"The loader may be {ahead} batches ahead (loader.workers x loader.prefetch): after a slow first update as "
            "many come without a wait, so a trial of few updates tells little of the loader."
        )
    if len({row["machine"] for row in rows if row["status"] == OK}) > 1:
        told.append(
            "These trials were measured on different machines, as their column says: their times and their memory "
            "cannot be held against each other, nor can the recommendation by time."
        )
    if config.judge.split is not None and run.model.backbone != "meter":
        told.append(
            f"A contrastive loss depends on the batch, for its wrong answers come from it: in training they come from "
            f"{among}, so training losses of different batches cannot be compared. All losses here are those of one "
            f"fixed batch of {config.judge.batch} samples of {config.judge.split}, its contrast among itself alone, "
            "without queue and with hard labels; each model is judged as it is trained, pruned ones on pruned images."
        )
        told.append(
            "The noise scale is that of the gradient given the negatives of this batch; another batch has another "
            "loss, and so another noise scale."
        )
    return told


def _write(out: Path, trials: Mapping[str, Any], began: float, largest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Writes all tables and the report; returns what stands in scale.json."""
    more = {"largest": largest, "recommendation": recommendation(trials["rows"], largest)}
    data = {**trials, "seconds": round(time.monotonic() - began, 1), **more}
    write_json(out / SCALE, data)
    text = io.StringIO()
    rows: list[dict[str, Any]] = data["rows"]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out / TABLE, text.getvalue())
    from launch.report.scale import write_scale_report  # matplotlib comes with it

    write_scale_report(out, data)
    return data


def _track(run: RunConfig, config: ScaleConfig, out: Path, data: Mapping[str, Any]) -> None:
    """Sends the rows to wandb, as the run's `tracking` says."""
    if run.tracking.wandb == "disabled":
        return
    folder = out / "tracking" / "scale"
    with open_tracker(
        run.tracking, config.name, {"name": config.name, "scale": as_json(config)}, folder, Process()
    ) as to:
        for step, row in enumerate(data["rows"]):
            to.log({"step": step, **{key: value for key, value in row.items() if value is not None}})
        to.summary({"recommendation": data["recommendation"], **_largest_values(data["largest"])})


def _largest_values(largest: Mapping[str, Any] | None) -> dict[str, Any]:
    if largest is None:
        return {}
    return {f"largest/{entry['pruning']}": entry["largest"] for entry in largest["found"]}


def refuse_nothing(config: ScaleConfig, data: Mapping[str, Any]) -> None:
    """Says it where nothing came of it.

    Raises:
        UserError: With what would help.
    """
    rows, largest = data["rows"], data["largest"]
    if not any(row["status"] == OK for row in rows):
        counts = {status: sum(row["status"] == status for row in rows) for status in {row["status"] for row in rows}}
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        first = rows[0]
        mend = "raise limits.memory_gib or limits.seconds, or give smaller batches"
        if set(counts) <= {FAILED, KILLED}:
            mend = f"{Path(config.out) / 'trials' / first['name']} has the details"
        raise UserError(
            f"none of {len(rows)} trials came to its end ({told}); {first['name']}: {first['reason']}; {mend}"
        )
    if largest is not None and all(entry["largest"] is None for entry in largest["found"]):
        faults = [entry["fault"] for entry in largest["found"] if entry["fault"]]
        if faults:
            raise UserError(f"no largest batch was found: {faults[0]}; {Path(config.out) / 'largest'} has the details")
        raise UserError(
            f"largest.memory_gib={largest['limit_bytes'] / _GIB:g}: not even {config.largest.first[0]} samples fit "
            f"({largest['found'][0]['reason']}); give more memory, or a smaller largest.first"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
