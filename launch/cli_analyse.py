"""The options of `trimline analyse WHAT`."""

import argparse
from pathlib import Path
from typing import Any

from launch.answers import Answer, add_command, add_group


def add_analyse_commands(commands: Any) -> None:
    """`analyse WHAT`."""
    kinds = add_group(commands, "analyse", "look into a trained model", "analyse leak runs/demo")
    leak = "what pruning images by captions tells pre-training's tasks that they should not know"
    parser = add_command(kinds, "leak", leak, "analyse leak runs/demo-0 runs/demo-1 --split unseen", _leak)
    several = "run folders; those that differ in nothing but seed and data are averaged"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=several)
    split = "held-out split, or a folder of indexed shards (the first split that the first run evaluates)"
    parser.add_argument("--split", help=split)
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="pairs to look at (%(default)s)")
    similarity = "how alike the tokens that enter each layer are, and what its heads attend to"
    parser = add_command(kinds, "similarity", similarity, "analyse similarity runs/demo", _similarity)
    _add_layer_options(parser, _RUN_OR_EXPORT)
    attention = "how far the attention of a run's vision tower is from that of the tower that it began from, by layer"
    example = "analyse attention runs/4m --against vit_base.safetensors"
    parser = add_command(kinds, "attention", attention, example, _attention)
    against = "another run's folder, or weights of a vision tower (those of the run's pretrain.init)"
    parser.add_argument("--against", type=Path, metavar="RUN|WEIGHTS", help=against)
    _add_layer_options(parser, _RUN_OR_EXPORT)
    trimming = "what each layer of the trimmed models keeps, what each instance costs, and which cost least and most"
    parser = add_command(kinds, "trimming", trimming, "analyse trimming runs/demo --split unseen", _trimming)
    _add_layer_options(parser, "run folder, or the export of a fine-tuned model", "statements or questions")
    parser.add_argument("--task", help="which of the run's tasks (the first that has fine-tuned models)")
    _add_survivors_command(kinds)
    shares = "which shares of a model's multiply-accumulates its modules have"
    example = "analyse flops albef_base blip_base meter_base --task retrieval --out figures"
    _add_flops_options(add_command(kinds, "flops", shares, example, _flops))


def _add_survivors_command(kinds: Any) -> None:
    survivors = "which patches of a picture, and which words, a model keeps for each of several sentences"
    example = "analyse survivors runs/demo/stages/pretrain/export --image a.jpg --text 'a red circle' --text 'a cross'"
    parser = add_command(kinds, "survivors", survivors, f"{example} --out figures", _survivors)
    export = "export of pre-training with pruning, in its run, or of a trimmed model"
    parser.add_argument("export", metavar="EXPORT", type=Path, help=export)
    pictures: dict[str, Any] = {"required": True, "action": "append", "type": Path, "metavar": "FILE"}
    parser.add_argument("--image", **pictures, help="a picture; may be given several times")
    texts = "a sentence or question about each picture; may be given several times"
    parser.add_argument("--text", required=True, action="append", metavar="TEXT", help=texts)
    out = "folder of survivors-MODEL.png and .csv"
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help=out)


def _add_flops_options(parser: argparse.ArgumentParser) -> None:
    model = "a name of configs/models, or a YAML file with a `model`"
    parser.add_argument("models", metavar="MODEL", nargs="+", help=model)
    parser.add_argument("--task", default="retrieval", help="retrieval, vqa, nlvr2 or caption (%(default)s)")
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--image-size", **whole, help="height and width in pixels (the files')")
    length = "tokens of the text, special ones included (%(default)s)"
    parser.add_argument("--text-length", **whole, default=20, help=length)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of flops-TASK.svg and .csv")


_RUN_OR_EXPORT = "run folder, or an export folder, such as trimline import writes"


def _add_layer_options(parser: argparse.ArgumentParser, folder: str, what: str = "pairs") -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help=folder)
    parser.add_argument("--split", help="a split of the run, or a folder of indexed shards (the first it evaluates)")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help=f"{what} to look at (%(default)s)")
    out = "folder of the figure (SVG) and its numbers (CSV); RUN/analyses if not given"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)


def _leak(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.analyse_leak import leak_command

    return leak_command([Path(run) for run in options.runs], options.split, options.samples)


def _similarity(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.analyse_layers import similarity_command

    return similarity_command(options.run, options.split, options.samples, options.out)


def _attention(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.analyse_layers import divergence_command

    return divergence_command(options.run, options.against, options.split, options.samples, options.out)


def _trimming(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.analyse_trimming import trimming_command

    return trimming_command(options.run, options.split, options.samples, options.out, options.task)


def _survivors(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.analyse_survivors import survivors_command

    return survivors_command(options.export, options.image, options.text, options.out)


def _flops(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.flops import shares_command

    return shares_command(options.models, options.task, options.image_size, options.text_length, options.out)
