"""`trimline analyse leak RUN ...`: what text-guided pruning tells the tasks of pre-training."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.answers import Answer
from launch.exposure import in_words
from launch.leak_table import leak_text, means_of
from launch.trained_run import TrainedRun
from pipeline.measure.leak import Probe, measure_leak
from pipeline.objectives.mlm import Vocabulary

BATCH = 64


def leak_command(folders: Sequence[Path], split: str | None, samples: int) -> Answer:
    """`trimline analyse leak RUN ...`.

    Args:
        folders: Of runs that got as far as pre-training.
        split: Name of a split of theirs, or a folder of indexed shards; None for the first that the first run
            evaluates.
        samples: Pairs to look at in each.

    Raises:
        UserError: A folder holds no pre-trained model, or one that text-guided pruning has no part in.
    """
    if samples < 2:
        raise UserError(f"--samples {samples} must be at least 2")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run folder is named twice; its numbers would count twice")
    runs: list[TrainedRun] = []
    for folder in folders:
        # One split for all: what is averaged must have been asked of the same pictures.
        runs.append(_guided_by_text(TrainedRun.of(folder, split or (runs[0].split if runs else None))))
    labels = _labels(runs)
    exposures = [run.exposure for run in runs]
    rows = []
    for run, label, exposure in zip(runs, labels, exposures, strict=True):
        told = {"run": str(run.folder), "setting": label, "seed": run.config.seed, "held_out": exposure.held_out}
        rows += [{**told, **row} for row in _leak(run, samples)]
    means = means_of(rows)
    return (
        0,
        {"split": runs[0].split, "rows": rows, "means": means},
        leak_text(runs[0].split, rows, means, in_words(exposures)),
    )


def _guided_by_text(run: TrainedRun) -> TrainedRun:
    if run.config.pretrain.pruning.chosen is not run.config.pretrain.pruning.elip:
        raise UserError(
            f"{run.folder} was pre-trained without text-guided pruning: nothing can leak there; leave it out"
        )
    return run


def _setting(run: TrainedRun) -> dict[str, Any]:
    """What runs of different seeds have in common."""
    pruning = run.config.pretrain.pruning
    momentum = {"prune_momentum": pruning.prune_momentum}
    return {"backbone": run.config.model.backbone, **asdict(pruning.elip), **momentum}


def _labels(runs: Sequence[TrainedRun]) -> list[str]:
    """What each run is called: its backbone and guidance, and whatever else is not the same in all of them."""
    settings = [_setting(run) for run in runs]
    varied = [key for key in settings[0] if any(setting.get(key) != settings[0][key] for setting in settings)]
    extra = [key for key in varied if key not in ("backbone", "guidance")]
    return [" ".join([s["backbone"], s["guidance"], *(f"{key}={_short(s[key])}" for key in extra)]) for s in settings]


def _short(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _leak(run: TrainedRun, samples: int) -> list[dict[str, Any]]:
    probe = Probe(
        model=run.model(),
        pruning=run.config.pretrain.pruning,
        words=Vocabulary(mask=run.tokenizer.mask_id, size=run.tokenizer.vocab_size),
        mask_share=run.config.pretrain.objectives.mask_share,
        normalise=run.inputs.normalise,
    )
    return measure_leak(probe, run.batches(samples, BATCH))
