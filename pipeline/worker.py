"""The one entry of a worker process: a job as JSON in, its results as JSON out. Every launcher calls it alike."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser

from pipeline.checkpoint_rules import CheckpointConfig
from pipeline.data.loader import LoaderConfig
from pipeline.engine import EngineConfig
from pipeline.evaluate import evaluate
from pipeline.evaluation.config import EvaluateConfig, Trained
from pipeline.models.config import ModelConfig
from pipeline.pretrain import PretrainConfig, pretrain
from pipeline.process import Process
from pipeline.pulse import FilePulse, Pulse
from pipeline.setup import Inputs
from pipeline.stage import Between, Stage
from pipeline.survivors import draw_survivors
from pipeline.tracking import Tracker, TrackingConfig, open_tracker
from pipeline.trim import trim
from pipeline.trim_config import TrimConfig
from pipeline.trimming.target import Target

Job = Mapping[str, Any]
Config = TypeVar("Config")


def run_job(job: Job, process: Process, between: Between = iter) -> dict[str, Any]:
    """Do one stage's work in this process; all processes of the stage call it together.

    Args:
        job: JSON-able: ``kind`` (``pretrain``, ``trim``, ``evaluate`` or ``survivors``), ``stage`` (its name),
            ``folder`` (of the stage), ``data`` and ``tokenizer`` (folders), ``run`` (the resolved config),
            ``budget_seconds`` (or None), ``fingerprint`` (of all that the stage's result depends on); ``target``,
            ``backbone`` (export folder) and ``teacher`` (the full model's, or None) for trim; ``pretrained`` (export
            folder or None) and ``trimmed`` ({stage name: export folder}) for evaluate and survivors; ``group`` for
            wandb; ``stall_seconds`` (see `FilePulse`); ``lease`` and ``silent_seconds`` (see `Stage`).
        process: This process among those of the stage.
        between: Stands between loader and training loop.

    Returns:
        What the stage achieved: counts, or ``{"rows": [...]}`` of an evaluation. The same on every process.

    Raises:
        UserError: Something is wrong with the configuration or the data.
    """
    process.claim_device()
    torch.set_num_threads(max(1, int(job.get("threads", torch.get_num_threads()))))
    pulse = FilePulse(Path(job["folder"]), process.rank, float(job.get("stall_seconds", 0.0)))
    with _tracker(job, process) as tracker, pulse:
        return _KINDS[job["kind"]](job, replace(_stage(job, process, tracker, pulse), between=between))


def parse(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A typed config from the plain values of a resolved one, with all its checks."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=config)
    parsed: Config = parser.instantiate(parser.parse_object({"value": dict(values)})).value
    return parsed


def inputs_of(job: Job) -> Inputs:
    """What a training stage is given besides its own config."""
    run = job["run"]
    return Inputs(
        data=Path(job["data"]),
        tokenizer=Path(job["tokenizer"]),
        loader=parse(LoaderConfig, run["loader"]),
        engine=parse(EngineConfig, run["engine"]),
        seed=run["seed"],
    )


def _stage(job: Job, process: Process, tracker: Tracker, pulse: Pulse) -> Stage:
    return Stage(
        Path(job["folder"]),
        process,
        job.get("budget_seconds"),
        checkpoint=parse(CheckpointConfig, job["run"].get("checkpoint", {})),
        fingerprint=job.get("fingerprint", ""),
        tracker=tracker,
        pulse=pulse,
        lease=job.get("lease"),
        silent_seconds=float(job.get("silent_seconds", 0.0)),
    )


def _tracker(job: Job, process: Process) -> AbstractContextManager[Tracker]:
    """Who is told of a stage; nobody where the run's configuration does not say."""
    run = job["run"]
    config = parse(TrackingConfig, run["tracking"]) if "tracking" in run else TrackingConfig(wandb="disabled")
    if job["kind"] == "survivors":
        config = replace(config, wandb="disabled")  # it has no numbers
    return open_tracker(config, str(job.get("group", "")), run, Path(job["folder"]), process)


def _trained(job: Job) -> Trained:
    pretrained = job.get("pretrained")
    trimmed = {name: Path(folder) for name, folder in job.get("trimmed", {}).items()}
    return Trained(None if pretrained is None else Path(pretrained), trimmed)


def _pretrain(job: Job, stage: Stage) -> dict[str, Any]:
    config, model = parse(PretrainConfig, job["run"]["pretrain"]), parse(ModelConfig, job["run"]["model"])
    return pretrain(config, model, inputs_of(job), stage)


def _trim(job: Job, stage: Stage) -> dict[str, Any]:
    config, model = parse(TrimConfig, job["run"]["trim"]), parse(ModelConfig, job["run"]["model"])
    target, teacher = Target.parse(job["target"]), None if job.get("teacher") is None else Path(job["teacher"])
    kept = config.kept_pruning(model.backbone, parse(PretrainConfig, job["run"]["pretrain"]).pruning)
    return trim(config, target, Path(job["backbone"]), model, inputs_of(job), stage, teacher, kept)


def _evaluate(job: Job, stage: Stage) -> dict[str, Any]:
    config = parse(EvaluateConfig, job["run"]["evaluate"])
    rows = evaluate(config, _trained(job), inputs_of(job), stage)
    stage.tracker.summary({f"{row['task']}/{row['split']}/{row['metric']}": row["value"] for row in rows})
    return {"rows": rows}


def _survivors(job: Job, stage: Stage) -> dict[str, Any]:
    config = parse(EvaluateConfig, job["run"]["evaluate"])
    pruning = parse(PretrainConfig, job["run"]["pretrain"]).pruning
    return {"pictures": draw_survivors(config, pruning, _trained(job), inputs_of(job), stage)}


_KINDS: dict[str, Callable[[Job, Stage], dict[str, Any]]] = {
    "pretrain": _pretrain,
    "trim": _trim,
    "evaluate": _evaluate,
    "survivors": _survivors,
}
