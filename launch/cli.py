"""The command line `trimline`.

Only what a command needs is imported, for `--help` must answer at once and torch takes seconds.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.bench_options import add_shard_bench_options
from launch.shard_words import ShowShardHelp, gather_lists

log = logging.getLogger("launch")

USER_MISTAKE, INTERNAL, INTERRUPTED = 2, 1, 130

Answer = tuple[int, dict[str, Any] | None, str]
"""Exit code, the JSON object (None to print nothing), the text for people."""

Handler = Callable[[argparse.Namespace, list[str]], Answer]
"""Parsed arguments and overrides of the configuration -> the answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    0: done. 1: an error of Trimline's own. 2: a mistake of the user's, told in one line. 130: stopped by Ctrl-C or
    SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    own, overrides = _split(words)
    options = parser.parse_args(own)
    if options.handler is None:
        parser.print_help(sys.stderr)
        return USER_MISTAKE
    _log_to_stderr(options.verbose)
    try:
        code, data, text = _answer(options, overrides)
    except UserError as error:
        return _refuse(" ".join(str(error).split()), options.json)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command again to continue\n")
        return INTERRUPTED
    except BrokenPipeError:
        return INTERNAL
    except Exception as error:
        return _apologise(error, options)
    if options.json and data is not None:
        text = json.dumps(data)
    sys.stdout.write(f"{text}\n" if text else "")
    return code


def _answer(options: argparse.Namespace, overrides: list[str]) -> Answer:
    handler: Handler = options.handler
    return handler(options, overrides)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells this command line's own words from overrides such as ``--data.root DIR`` or ``--seed=1``.

    argparse cannot, for it would take an override's value for a file.
    """
    if not words or words[0] not in _TAKING_OVERRIDES:
        return list(words), []
    own: list[str] = []
    overrides: list[str] = []
    if words[0] == "shard":
        words = gather_lists(words)
    waiting = iter(words)
    for word in waiting:
        known = word.split("=", 1)[0] in _OPTIONS or not word.startswith("--")
        (own if known else overrides).append(word)
        if word.startswith("--") and "=" not in word and word not in _FLAGS:
            value = next(waiting, None)
            if value is not None:
                (own if known else overrides).append(value)
    return own, overrides


def _refuse(line: str, as_json: bool) -> int:
    sys.stderr.write(f"trimline: {line}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": line}) + "\n")
    return USER_MISTAKE


def _apologise(error: Exception, options: argparse.Namespace) -> int:
    """One line for an error of ours; the traceback is in the run's launch.log, or on screen with --verbose."""
    log.debug("internal error", exc_info=error)
    line = " ".join(f"{type(error).__name__}: {error}".split())
    where = "the run folder's launch.log has" if options.command in _RUNNING else "--verbose shows"
    sys.stderr.write(f"trimline: an error of Trimline's own: {line} ({where} the details)\n")
    if options.json:
        sys.stdout.write(json.dumps({"error": line}) + "\n")
    return INTERNAL


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s" if verbose else "%(message)s",
        stream=sys.stderr,
    )
    for noisy in ("ray", "asyncio", "PIL", "matplotlib", "urllib3", "filelock", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


class _Parser(argparse.ArgumentParser):
    """argparse with one line instead of a usage text, and without guessing at shortened options."""

    def error(self, message: str) -> Any:
        """Ends the program with the user's exit code."""
        sys.stderr.write(f"{self.prog}: {message}; see `{self.prog} --help`\n")
        raise SystemExit(USER_MISTAKE)


_COMMON = _Parser(add_help=False)
_COMMON.add_argument("--json", action="store_true", help="print one JSON object; everything else goes to stderr")
_COMMON.add_argument("--verbose", action="store_true", help="log details to stderr")

_RUN_HELP = {
    "run": "a whole run: shards, pre-training, trimming, evaluation, report; goes on where it stopped",
    "pretrain": "a run up to and including pre-training",
    "trim": "a run up to and including trimming",
    "evaluate": "a run up to and including evaluation",
}
_RUNNING = frozenset(_RUN_HELP)
_TAKING_OVERRIDES = _RUNNING | {"shard", "compare"}
_FLAGS = frozenset({"--help", "--json", "--verbose", "--fresh", "--print_config"})
_OPTIONS = _FLAGS | {"--config"}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trimline",
        description="Pre-train vision-language models with fewer vision tokens, then make them adaptive.",
        epilog="example: trimline run configs/runs/demo.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version, and stop")
    parser.set_defaults(handler=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in _RUN_HELP.items():
        _add_run(commands, name, text)
    _add_data_commands(commands)
    _add_run_folder_commands(commands)
    _add_bench_commands(commands)
    _add_flops_command(commands)
    _add_download_command(commands)
    _add_compare_command(commands)
    _add_analyse_commands(commands)
    _add_weight_commands(commands)
    return parser


class _ShowVersion(argparse.Action):
    """Looks the version up only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints it and ends."""
        import importlib.metadata

        sys.stdout.write(f"trimline {importlib.metadata.version('trimline')}\n")
        parser.exit()


def _add(commands: Any, name: str, text: str, example: str, handler: Handler) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: trimline {example}",
        parents=[_COMMON],
        allow_abbrev=False,
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_run(commands: Any, name: str, text: str) -> None:
    example = f"{name} configs/runs/demo.yaml --out runs/mine --seed 1"
    parser = _add(
        commands, name, f"{text}. Any key of the configuration can be given as --key.sub VALUE", example, _run
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML files; later ones win over earlier ones")
    parser.add_argument("--config", action="append", default=[], metavar="CONFIG", help="another one of them")
    parser.add_argument("--fresh", action="store_true", help="start over: remove what an earlier run left in `out`")
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration as YAML, and stop")


def _add_data_commands(commands: Any) -> None:
    _add_shard(commands)
    parser = _add(commands, "index", "make the index of shards that came from elsewhere", "index DIR", _index)
    parser.add_argument("folder", metavar="DIR", help="folder with .tar shards")
    _add_workers(parser)
    text = "check shards against their index, and every sample; exit code 1 if there is a fault"
    parser = _add(commands, "verify", text, "verify data/nlvr --repair", _verify)
    parser.add_argument("folder", metavar="DIR", help="folder of a split, or of several")
    mend = "write damaged shards anew from their good samples, and the index; lost.jsonl names what was lost"
    parser.add_argument("--repair", action="store_true", help=mend)
    quick = "do not decode the pictures, which takes most of the time; checksums are compared all the same"
    parser.add_argument("--no-decode", dest="decode", action="store_false", help=quick)
    _add_workers(parser)
    text = "count what lies in shards: sources, captions, words, sizes of pictures"
    parser = _add(commands, "stats", text, "stats data/nlvr --json", _stats)
    parser.add_argument("folder", metavar="DIR", help="folder of a split, or of several")
    _add_workers(parser)
    text = "list the pictures of shards, by id and checksum, for `trimline shard --exclude FILE`"
    parser = _add(commands, "exclusions", text, "exclusions data/coco/test --out coco-test.txt", _exclusions)
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
    example = (
        "example: trimline shard coco --annotations captions_train2017.json --images train2017.zip --out data/coco"
    )
    parser: argparse.ArgumentParser = commands.add_parser(
        "shard", help=text, description=text, epilog=example, parents=[_COMMON], allow_abbrev=False, add_help=False
    )
    parser.set_defaults(handler=_shard)
    parser.add_argument("source", help="the data set; its options are given as --key VALUE, see the source's own help")
    parser.add_argument("-h", "--help", action=ShowShardHelp, nargs=0, help="show this help, or that of the source")


def _add_download_command(commands: Any) -> None:
    from launch.download import add_download_options

    text = "download the pictures of a list of URLs and captions into shards; goes on where it stopped"
    parser = _add(commands, "download", text, "download Train_GCC-training.tsv --out data/cc3m", _download)
    add_download_options(parser)


def _add_run_folder_commands(commands: Any) -> None:
    parser = _add(commands, "report", "write a run's report.html anew", "report runs/demo", _report)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser = _add(commands, "status", "say how far a run is, from another terminal", "status runs/demo", _status)
    parser.add_argument("run", metavar="RUN", help="run folder")


def _add_bench_commands(commands: Any) -> None:
    text = "measure this machine, always as a ratio to a reference in the same run"
    example = "example: trimline bench vision --json"
    parser = commands.add_parser("bench", help=text, description=text, epilog=example, allow_abbrev=False)
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    vision = "the vision tower, forward and backward, with each guidance against unpruned"
    _add_pruning_options(_add(kinds, "vision", vision, "bench vision --batch 8 --json", _bench), pixels=224)
    step = "ALBEF's pre-training step, online and momentum towers and three losses, pruned against unpruned"
    parser = _add(kinds, "step", step, "bench step --image-size 256 --text-length 25 --json", _bench)
    _add_pruning_options(parser, pixels=256)
    parser.add_argument("--text-length", type=int, default=25, metavar="TOKENS", help="of every text (%(default)s)")

    shard = "writing shards, against webdataset's TarWriter, the disk, the checksums and the bare decoder"
    parser = _add(kinds, "shard", shard, "bench shard --images DIR --json", _bench)
    add_shard_bench_options(parser)


def _add_flops_command(commands: Any) -> None:
    text = "count a model's multiply-accumulates on a task, by module"
    example = "flops --model meter_base --task vqa --image-size 288 --text-length 10 --json"
    parser = _add(commands, "flops", text, example, _flops)
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--model", required=True, help="a name of configs/models, or a YAML file with a `model`")
    parser.add_argument("--task", required=True, help="retrieval, vqa, nlvr2 or caption")
    parser.add_argument("--image-size", **whole, help="height and width in pixels (the file's)")
    parser.add_argument("--text-length", **whole, required=True, help="tokens of the text, special ones included")
    parser.add_argument("--answers", **whole, help="classes of METER's VQA head (3129)")
    parser.add_argument("--new-tokens", **whole, help="tokens that BLIP's decoder writes (4)")
    parser.add_argument("--beams", **whole, help="hypotheses that it carries along (3)")


def _add_analyse_commands(commands: Any) -> None:
    text = "look into a trained model"
    example = "example: trimline analyse leak runs/demo"
    parser = commands.add_parser("analyse", help=text, description=text, epilog=example, allow_abbrev=False)
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    leak = "what pruning images by captions tells pre-training's tasks that they should not know"
    parser = _add(kinds, "leak", leak, "analyse leak runs/demo --split test --json", _leak)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--split", help="held-out split (the first that the run evaluates)")
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="pairs to look at (%(default)s)")


def _add_compare_command(commands: Any) -> None:
    text = "the same run with one thing changed at a time, over several seeds; goes on where it stopped"
    example = "compare configs/experiments/pruning.yaml --out runs/pruning"
    parser = _add(commands, "compare", f"{text}. Keys can be given as --key VALUE", example, _compare)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files; later ones win over earlier ones")


def _add_pruning_options(parser: argparse.ArgumentParser, pixels: int) -> None:
    """What `bench vision` and `bench step` both understand; defaults that hang on the device are chosen later."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--model", choices=["base", "small", "tiny"], default="base", help="size (%(default)s)")
    parser.add_argument("--image-size", **whole, default=pixels, help="height and width in pixels (%(default)s)")
    parser.add_argument("--patch", **whole, default=16, help="side of a patch in pixels (%(default)s)")
    parser.add_argument("--batch", **whole, help="samples at a time (8 on a CPU, more on a GPU)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to run (a GPU if there is one)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="bfloat16 is autocast (float32 on a CPU, else bfloat16)"
    )
    parser.add_argument("--threads", **whole, help="of torch on the CPU (one for each CPU that is granted)")
    parser.add_argument("--rounds", **whole, help="that count; each runs every variant once, in turn")
    parser.add_argument("--warmup", **whole, default=2, help="rounds before them (%(default)s)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="use torch.compile (on a GPU only, if not given)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and the order of runs (%(default)s)")


FOREIGN_KINDS = ("albef", "blip", "blip-hf", "clip", "meter")
"""Those of pipeline.weights.folders, which takes torch to import."""


def _add_weight_commands(commands: Any) -> None:
    text = "read weights of another project into a folder as pre-training exports it"
    parser = _add(commands, "import", text, "import model_base.pth --kind blip --out weights/blip", _import)
    parser.add_argument("path", metavar="PATH", help="a .pth, .pt, .ckpt, .bin or .safetensors file, or a folder")
    parser.add_argument("--kind", required=True, choices=FOREIGN_KINDS, help="whose names they have")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; not there yet, or empty")
    parser.add_argument("--vision-heads", type=int, help="attention heads of the vision tower; default: width / 64")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text layers; default: width / 64")
    parser.add_argument("--fusion-heads", type=int, help="attention heads of METER's fusion; default: width / 64")
    parser.add_argument("--image-size", type=int, help="side of the pictures in pixels; default: the file's")
    text = "write weights in the format of another library"
    parser = _add(commands, "export", text, "export weights/blip --format hf --out weights/blip-hf", _export)
    parser.add_argument("folder", metavar="CKPT", help="folder that pre-training or `trimline import` wrote")
    parser.add_argument("--format", required=True, choices=("hf",), help="hf: what transformers' from_pretrained loads")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; not there yet, or empty")


def _run(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.commands import run_command

    return run_command(
        [*options.configs, *options.config],
        overrides,
        until=None if options.command == "run" else options.command,
        fresh=options.fresh,
        print_config=options.print_config,
    )


def _shard(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.commands import shard_command

    return shard_command(options.source, overrides)


def _download(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.download import download_command

    return download_command(options)


def _index(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.shard_commands import index_command

    return index_command(Path(options.folder).expanduser(), options.workers)


def _verify(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.shard_commands import verify_command

    folder = Path(options.folder).expanduser()
    return verify_command(folder, decode=options.decode, repair=options.repair, workers=options.workers)


def _stats(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.shard_commands import stats_command

    return stats_command(Path(options.folder).expanduser(), options.workers)


def _exclusions(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import exclusions_command

    return exclusions_command([Path(folder).expanduser() for folder in options.folders], Path(options.out).expanduser())


def _report(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import report_command

    return report_command(Path(options.run))


def _status(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import status_command

    return status_command(Path(options.run))


def _bench(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.bench import bench_command

    return bench_command(options.what, options)


def _flops(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.flops import flops_command

    fields = ("task", "text_length", "answers", "new_tokens", "beams")
    return flops_command(options.model, options.image_size, {name: getattr(options, name) for name in fields})


def _compare(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.commands import compare_command

    return compare_command(options.configs, overrides)


def _leak(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.analyse import leak_command

    return leak_command(Path(options.run), options.split, options.samples)


def _import(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import import_command

    heads = {f"{part}_heads": getattr(options, f"{part}_heads") for part in ("vision", "text", "fusion")}
    return import_command(Path(options.path), options.kind, Path(options.out), image_size=options.image_size, **heads)


def _export(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import export_command

    return export_command(Path(options.folder), Path(options.out))
