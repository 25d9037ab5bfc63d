"""The options of `trimline evaluate CKPT --task T`; without --task the command is a run up to evaluation."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.answers import Answer
from launch.cli_search import add_search, given_search

TASK_NAMES = ("retrieval", "zero_shot", "statement", "snli_ve", "vqa", "vqa_generative", "nlvr2", "captioning")
"""Those of pipeline.evaluation.exported, which takes torch to import."""

EXAMPLE = "evaluate runs/demo/stages/pretrain/export --task retrieval --data runs/demo/data --split test"


def of_export(words: Sequence[str]) -> bool:
    """Whether a command line evaluates an export folder, and not a run."""
    return bool(words) and words[0] == "evaluate" and any(word.split("=", 1)[0] == "--task" for word in words)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """What can be asked of an export folder."""
    group = parser.add_argument_group(
        "an export folder (CKPT in the place of CONFIG)",
        "with --task the folder that pre-training, trimming or `trimline import` wrote is evaluated, and nothing is "
        f"trained; example: trimline {EXAMPLE}",
    )
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    group.add_argument("--task", choices=TASK_NAMES, help="what the model is to do")
    group.add_argument("--data", metavar="DIR", help="folder of splits, or of one split's indexed shards")
    group.add_argument("--split", help="name of a split of --data, or a folder of indexed shards (test)")
    group.add_argument("--batch-size", **whole, default=64, help="instances at once (%(default)s)")
    group.add_argument("--limit", **whole, help="only the first N images, statements or questions")
    rerank = "retrieval: candidates that matching re-ranks; 0 ranks by contrastive features alone (%(default)s)"
    group.add_argument("--rerank", **whole, default=128, help=rerank)
    group.add_argument("--label-field", metavar="PATH", help="zero_shot: field of KEY.json, such as scene.*.kind")
    group.add_argument("--classes", metavar="FILE", help="zero_shot: class names, a line each (all labels there are)")
    templates = "zero_shot: prompts with {} for the class, a line each ('a photo of a {}.')"
    group.add_argument("--templates", metavar="FILE", help=templates)
    add_search(group)
    listed = "vqa, vqa_generative: JSON list of answers, for imported weights, which have none"
    group.add_argument("--answers", metavar="FILE", help=listed)
    written = "vqa, snli_ve, nlvr2, captioning: file to write as the task's server takes it"
    group.add_argument("--predictions", metavar="FILE", help=written)
    kept = "file.npz to keep what became of each instance in, for another evaluation's --against"
    group.add_argument("--outcomes", metavar="FILE", help=kept)
    against = "tell differences from the model of this file, of --outcomes or a run's stages/evaluate-*/outcomes"
    group.add_argument("--against", metavar="FILE", help=against)
    group.add_argument("--tokenizer", metavar="DIR", help="where the folder has none, as imported weights")
    processes = "of this machine (1); under torchrun leave it out. The scores are the same"
    group.add_argument("--processes", **whole, help=processes)
    group.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="bf16 is autocast")
    group.add_argument("--device", choices=("cpu", "cuda"), help="where to run (a GPU if there is one)")


def evaluate_export_handler(options: argparse.Namespace) -> Answer:
    """`trimline evaluate CKPT --task T`."""
    given = [*options.configs, *options.config]
    if len(given) != 1:
        raise UserError(f"--task {options.task} evaluates one export folder, and {len(given)} were given: {EXAMPLE}")
    if options.data is None and options.split is None:
        raise UserError(f"--task {options.task} needs --data DIR, a folder of splits such as runs/demo/data")
    from launch.evaluate import evaluate_command

    names = ["task", "data", "split", "batch_size", "limit", "rerank", "label_field"]
    names += ["precision", "processes", "device"]
    chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
    files = ("classes", "templates", "tokenizer", "predictions", "answers", "outcomes", "against")
    chosen |= {name: _path(getattr(options, name)) for name in files}
    chosen["captions"] = given_search(options)
    return evaluate_command(Path(given[0]).expanduser(), **chosen)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def refuse_folders(given: Sequence[str]) -> None:
    """Tells somebody who named an export, but no task, how to evaluate it.

    Raises:
        UserError: One of the configurations is a folder.
    """
    for name in given:
        if Path(name).expanduser().is_dir():
            raise UserError(
                f"{name} is a folder, and a run is configured by YAML files; to evaluate an export say what it is to "
                f"do: {EXAMPLE}"
            )
