"""`trimline evaluate CKPT --task T`: scores, costs and times of an export folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import UserError
from data_prep.index import INDEX, indexed_splits
from data_prep.remote import is_url
from launch.answers import Answer
from launch.devices import device_of
from launch.local_processes import run_processes
from launch.paired import points
from launch.report.table import aligned
from launch.torchrun import process_of, run_here
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.process import Process

_SPLIT = "test"
_COUNTED = {
    "retrieval": "images",
    "zero_shot": "images",
    "captioning": "images",
    "vqa": "questions",
    "vqa_generative": "questions",
}
"""What a task's samples are; statements of the others."""


def evaluate_command(
    folder: Path,
    *,
    data: str | None,
    split: str | None,
    classes: Path | None,
    templates: Path | None,
    processes: int | None,
    device: str | None,
    **options: Any,
) -> Answer:
    """Evaluates, in as many processes as are asked for or torchrun has started, and prints one table.

    Args:
        folder: An export.
        data: Folder of splits or of a split.
        split: Its name, or a folder of indexed shards; None for the one in `data`, or test.
        classes: File of class names.
        templates: File of prompts.
        processes: How many; None for those of torchrun's, or one.
        device: ``cpu`` or ``cuda``; None for a GPU if there is one.
        options: Of `Evaluation`.

    Raises:
        UserError: Something that is asked for is not there or does not fit.
    """
    here = process_of(_gpus(device) > 0)
    if here.world_size > 1 and processes is not None:
        raise UserError(
            f"--processes {processes} starts processes of its own, and torchrun has started {here.world_size}; give one"
        )
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    texts = {"classes": classes, "templates": templates}
    options |= {name: _lines(name, file) for name, file in texts.items() if file is not None}
    evaluation = Evaluation(model=folder, split=find_split(data, split), **options)
    if here.world_size > 1:
        result = run_here(evaluate_export, (evaluation,), replace(here, device=_device(here.local_rank, device)))
        return (0, result, _table(result)) if here.is_main else (0, None, "")
    ranks = _ranks(processes or 1, device)
    one = len(ranks) == 1
    result = evaluate_export(evaluation, ranks[0]) if one else run_processes(evaluate_export, (evaluation,), ranks)
    return 0, result, _table(result)


def find_split(data: str | None, split: str | None) -> str:
    """The folder of indexed shards that is meant.

    Raises:
        UserError: There is none; the message names those that there are.
    """
    if data is not None and is_url(data):
        return data if split is None else f"{data.rstrip('/')}/{split}"
    if split is not None and is_url(split):
        return split
    root = None if data is None else Path(data).expanduser()
    if root is not None and not root.is_dir():
        raise UserError(f"--data {data}: no such folder; give one of splits, such as runs/demo/data")
    tried = [root / split] if root is not None and split is not None else []
    tried += [Path(split).expanduser()] if split is not None else []
    tried += [root, root / _SPLIT] if root is not None and split is None else []
    for folder in tried:
        if (folder / INDEX).is_file():
            return str(folder)
    known = "" if root is None else ", ".join(path.relative_to(root).as_posix() for path in indexed_splits(root))
    wanted = split if split is not None else _SPLIT
    there = f"{data} has the splits {known}" if known else f"{data or split} holds no indexed shards"
    raise UserError(f"no split {wanted!r}: {there}; name one with --split, or make an index with `trimline index DIR`")


def _lines(name: str, file: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--{name} {file} cannot be read as a text file ({error})") from error
    if not lines:
        raise UserError(f"--{name} {file} is empty; write one a line")
    twice = sorted({line for line in lines if lines.count(line) > 1})
    if twice:
        raise UserError(f"--{name} {file} has {twice[0]!r} twice; each line must be another one")
    return lines


def _ranks(count: int, device: str | None) -> list[Process]:
    return [
        Process(rank=rank, world_size=count, local_rank=rank, device=_device(rank, device)) for rank in range(count)
    ]


def _device(local_rank: int, device: str | None) -> str:
    gpus = _gpus(device)
    return f"cuda:{local_rank % gpus}" if gpus else "cpu"


def _gpus(device: str | None) -> int:
    """How many are to be used of those that this machine has."""
    return torch.cuda.device_count() if device_of(device) == "cuda" else 0


def _table(result: dict[str, Any]) -> str:
    """One line a score; what the whole evaluation has once stands in the first."""
    gmacs, latency = result["gmacs"], result["latency"]
    once = [
        f"{gmacs['mean']:.4g} ± {gmacs['std']:.2g} ({gmacs['low']:.4g} to {gmacs['high']:.4g})",
        f"{latency['ms']:.1f} ms",
        f"{result['parameters']:,}",
    ]
    against = ["difference"] if any("difference" in score for score in result["scores"]) else []
    cells = [[result["task"], "score", "95% interval", *against, "GMACs (5% to 95%)", "latency", "parameters"]]
    for number, score in enumerate(result["scores"]):
        cells.append(
            [
                score["metric"].replace("_", " "),
                f"{score['value']:.2f}",
                f"{score['low']:.2f} to {score['high']:.2f}",
                *(_difference(score[name]) for name in against),
                *(once if number == 0 else [""] * len(once)),
            ]
        )
    return "\n".join([*aligned(cells, 1), "", _about(result)])


def _difference(found: dict[str, float] | None) -> str:
    return "" if found is None else points({**found, "difference": found["value"]})


def _about(result: dict[str, Any]) -> str:
    of = f" of {result['of']}" if "of" in result else ""
    counted = [f"{result['samples']}{of} {_COUNTED.get(result['task'], 'statements')} of {result['split']}"]
    if result["skipped"]:
        counted.append(f"{result['skipped']} could not be used")
    if "left_out" in result:
        counted.append(f"{result['left_out']} samples are not in the shards (see the account in index.json)")
    if "captions" in result:
        counted.append(f"{result['captions']} captions of {result['queries']} images")
    if "classes" in result:
        counted.append(f"{result['classes']} classes, guessing gives {result['accuracy_of_guessing']:.2f}")
    if "lacking" in result:
        counted.append(result["lacking"])
    if "incomplete" in result:
        counted.append(f"{result['incomplete']} lacks what was not used or not there, and the task's server wants all")
    if "not_compared" in result:
        counted.append(f"no difference: {result['not_compared']}")
    if result.get("unscored"):
        counted.append(f"not scored: {result['unscored']}")
    latency = result["latency"]
    counted.append(
        f"latency: median of {latency['instances']} at batch 1, {latency['threads']} threads, {latency['device']}, "
        f"{result['precision']}"
    )
    return "; ".join(counted)
