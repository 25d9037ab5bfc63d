"""The commands of `trimline` that make, check and count shards.

Only what a command needs is imported, for `--help` must answer at once.
"""

import argparse
from pathlib import Path
from typing import Any

from launch.answers import COMMON, Answer, HelpLines, add_command, epilog_of
from launch.shard_words import ShowShardHelp


def add_data_commands(commands: Any) -> None:
    """Adds all of them."""
    _add_shard(commands)
    _add_download(commands)
    _add_draw(commands)
    parser = add_command(commands, "index", "make the index of shards that came from elsewhere", "index DIR", _index)
    parser.add_argument("folder", metavar="DIR", help="folder with .tar shards, or its URL in a store (s3://...)")
    _add_workers(parser)
    text = "check shards against their index, and every sample; exit code 1 if there is a fault"
    parser = add_command(commands, "verify", text, "verify data/nlvr --repair", _verify)
    parser.add_argument("folder", metavar="DIR", help="folder of a split, or of several, or its URL in a store")
    mend = "write damaged shards anew from their good samples, and the index; lost.jsonl names what was lost"
    parser.add_argument("--repair", action="store_true", help=mend)
    quick = "do not decode the pictures, which takes most of the time; checksums are compared all the same"
    parser.add_argument("--no-decode", dest="decode", action="store_false", help=quick)
    _add_workers(parser)
    text = "count what lies in shards: sources, captions, words, sizes of pictures"
    parser = add_command(commands, "stats", text, "stats data/nlvr --json", _stats)
    parser.add_argument("folder", metavar="DIR", help="folder of a split, or of several, or its URL in a store")
    _add_workers(parser)
    text = "list the pictures of shards, by id and checksum, for `trimline shard --exclude FILE`"
    parser = add_command(commands, "exclusions", text, "exclusions data/coco/test --out coco-test.txt", _exclusions)
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folder of a split, or of several")
    parser.add_argument("--out", required=True, metavar="FILE", help="the list to write")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes; one a core if not given")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes: give 1 or more")
    return number


def _add_shard(commands: Any) -> None:
    text = "write WebDataset shards of a data set"
    example = "trimline shard coco --annotations captions_train2017.json --images train2017.zip --out data/coco"
    parser: argparse.ArgumentParser = commands.add_parser(
        "shard",
        help=text,
        description=text,
        epilog=epilog_of(example, "docs/reference/config.md, or trimline shard SOURCE --help"),
        formatter_class=HelpLines,
        parents=[COMMON],
        allow_abbrev=False,
        add_help=False,
    )
    parser.set_defaults(handler=_shard)
    parser.add_argument("source", help="the data set; its options are given as --key VALUE, see the source's own help")
    parser.add_argument("-h", "--help", action=ShowShardHelp, nargs=0, help="show this help, or that of the source")


def _add_download(commands: Any) -> None:
    from launch.download import add_download_options

    text = "download the pictures of a list of URLs and captions into shards; goes on where it stopped"
    parser = add_command(commands, "download", text, "download Train_GCC-training.tsv --out data/cc3m", _download)
    add_download_options(parser)


def _shard(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.commands import shard_command

    return shard_command(options.source, overrides)


def _download(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.download import download_command

    return download_command(options)


def _index(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.shard_commands import index_command

    return index_command(options.folder, options.workers)


def _verify(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.shard_commands import verify_command

    return verify_command(options.folder, decode=options.decode, repair=options.repair, workers=options.workers)


def _stats(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.shard_commands import stats_command

    return stats_command(options.folder, options.workers)


def _exclusions(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import exclusions_command

    return exclusions_command([Path(folder).expanduser() for folder in options.folders], Path(options.out).expanduser())


DRAWN = ("vqa", "snli_ve", "nlvr2", "coco", "nocaps", "flickr30k")
"""Those of data_prep.shapes_published, which takes OpenCV to import."""


def _add_draw(commands: Any) -> None:
    text = "draw a small data set of shapes in the files that the real one is published as"
    parser = add_command(commands, "draw", text, "draw vqa --out drawn/vqa --size train=2000 --size val=500", _draw)
    parser.add_argument("name", choices=DRAWN, help="whose files: then `trimline shard NAME --root DIR`")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; not there yet, or empty")
    parser.add_argument("--size", action="append", required=True, metavar="SPLIT=N", help="pictures or pairs of it")
    parser.add_argument("--image-size", type=int, default=64, help="width and height in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides everything (%(default)s)")


def _draw(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.draw import draw_command

    return draw_command(options.name, Path(options.out).expanduser(), options.size, options.image_size, options.seed)
