"""The commands of `trimline` that read, use and write the weights of a trained model.

Only what a command needs is imported, for `--help` must answer at once and torch takes seconds.
"""

import argparse
from pathlib import Path
from typing import Any

from launch.answers import Answer, add_command
from launch.cli_search import add_search, given_search

FOREIGN_KINDS = ("albef", "blip", "blip-hf", "clip", "meter")
"""Those of pipeline.weights.folders, which takes torch to import."""


def add_weight_commands(commands: Any) -> None:
    """Adds all of them."""
    text = "read weights of another project into a folder as pre-training exports it"
    parser = add_command(commands, "import", text, "import model_base.pth --kind blip --out weights/blip", _import)
    parser.add_argument("path", metavar="PATH", help="a .pth, .pt, .ckpt, .bin or .safetensors file, or a folder")
    parser.add_argument("--kind", required=True, choices=FOREIGN_KINDS, help="whose names they have")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; not there yet, or empty")
    parser.add_argument("--vision-heads", type=int, help="attention heads of the vision tower; default: width / 64")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text layers; default: width / 64")
    parser.add_argument("--fusion-heads", type=int, help="attention heads of METER's fusion; default: width / 64")
    parser.add_argument("--image-size", type=int, help="side of the pictures in pixels; default: the file's")
    _add_predict(commands)
    text = "write weights in the format of another library"
    parser = add_command(commands, "export", text, "export weights/blip --format hf --out weights/blip-hf", _export)
    parser.add_argument("folder", metavar="CKPT", help="folder that pre-training or `trimline import` wrote")
    parser.add_argument("--format", required=True, choices=("hf",), help="hf: what transformers' from_pretrained loads")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; not there yet, or empty")


def _add_predict(commands: Any) -> None:
    text = (
        "judge statements about pictures or answer questions with a fine-tuned model, or caption them with a captioner"
    )
    example = (
        "predict runs/demo/stages/trim-statement-2.0x/export --image test-00000000.jpg --text 'there is a red circle'"
    )
    parser = add_command(commands, "predict", text, example, _predict)
    folder = "export folder of a trimming stage, or of a captioner that `trimline import` has read"
    parser.add_argument("folder", metavar="EXPORT", help=folder)
    shown = "one for all texts or each; for pairs two: left, right"
    parser.add_argument("--image", action="append", required=True, metavar="FILE", help=shown)
    given = "a statement or question; can be given several times; none for a captioner"
    parser.add_argument("--text", action="append", default=[], help=given)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to run (a GPU if there is one)")
    words = "folder of a captioner's tokenizer, where its export has none"
    parser.add_argument("--tokenizer", metavar="DIR", help=words)
    add_search(parser)


def _import(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import import_command

    heads = {f"{part}_heads": getattr(options, f"{part}_heads") for part in ("vision", "text", "fusion")}
    return import_command(Path(options.path), options.kind, Path(options.out), image_size=options.image_size, **heads)


def _predict(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.predict import predict_command

    given = given_search(options)
    return predict_command(Path(options.folder), options.image, options.text, options.device, given, options.tokenizer)


def _export(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import export_command

    return export_command(Path(options.folder), Path(options.out))
