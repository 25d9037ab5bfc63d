"""The command line `trimline`.

Only what a command needs is imported, for `--help` must answer at once and torch takes seconds.
"""

import argparse
import copy
import json
import logging
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.redact import SafeFormatter, redact
from launch.answers import (
    INTERNAL,
    INTERRUPTED,
    USER_MISTAKE,
    Answer,
    Handler,
    Parser,
    add_command,
    add_group,
    take_both_spellings,
)
from launch.bench_options import (
    add_launch_bench_options,
    add_loader_bench_options,
    add_shard_bench_options,
    add_trim_bench_options,
    name_list,
)
from launch.cli_analyse import add_analyse_commands
from launch.cli_cluster import SUBMIT_OPTIONS, add_cluster_commands
from launch.cli_data import add_data_commands
from launch.cli_evaluate import add_export_options, evaluate_export_handler, of_export, refuse_folders
from launch.cli_weights import add_weight_commands
from launch.shard_words import gather_lists

log = logging.getLogger("launch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    0: done. 1: an error of Trimline's own. 2: a mistake of the user's, told in one line. 130: stopped by Ctrl-C or
    SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = command_parser()
    own, overrides = _split(words)
    options = parser.parse_args(own)
    if options.handler is None:
        parser.print_help(sys.stderr)
        return USER_MISTAKE
    _log_to_stderr(options.verbose)
    try:
        code, data, text = _answer(options, overrides)
    except UserError as error:
        return _refuse(" ".join(redact(str(error)).split()), options.json)
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
    options = _OPTIONS
    if list(words[:2]) == ["cluster", "submit"]:
        options = _OPTIONS | SUBMIT_OPTIONS
    elif words and words[0] == "trim":
        options = _OPTIONS | {_TARGETS}
    elif not words or words[0] not in _TAKING_OVERRIDES or of_export(words):
        return list(words), []
    own: list[str] = []
    overrides: list[str] = []
    if words[0] == "shard":
        words = gather_lists(words)
    waiting = deque(words)
    while waiting:
        word = waiting.popleft()
        name = word.partition("=")[0].replace("_", "-")
        known = name in options or not word.startswith("--")
        (own if known else overrides).append(word)
        takes_value = word.startswith("--") and "=" not in word and name not in _FLAGS
        if takes_value and waiting and not waiting[0].startswith("--"):
            (own if known else overrides).append(waiting.popleft())
    return own, overrides


def _refuse(line: str, as_json: bool) -> int:
    sys.stderr.write(f"trimline: {line}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": line}) + "\n")
    return USER_MISTAKE


def _apologise(error: Exception, options: argparse.Namespace) -> int:
    """One line for an error of ours; the traceback is in the run's launch.log, or on screen with --verbose."""
    log.debug("internal error", exc_info=error)
    line = " ".join(redact(f"{type(error).__name__}: {error}").split())
    in_run = options.command in _RUNNING | {"compare", "scale"} and getattr(options, "task", None) is None
    where = "launch.log in its folder has" if in_run else "--verbose shows"
    sys.stderr.write(f"trimline: an error of Trimline's own: {line} ({where} the details)\n")
    if options.json:
        sys.stdout.write(json.dumps({"error": line}) + "\n")
    return INTERNAL


class _LineFormatter(SafeFormatter):
    """Leaves tracebacks and stacks to the log file of a run, and to --verbose."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = copy.copy(record)  # the log file gets the same record
        line.exc_info = line.exc_text = line.stack_info = None
        return super().format(line)


def _log_to_stderr(verbose: bool) -> None:
    screen = logging.StreamHandler(sys.stderr)
    whole = SafeFormatter("%(levelname)s %(name)s: %(message)s")
    screen.setFormatter(whole if verbose else _LineFormatter("%(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[screen])
    for noisy in ("ray", "asyncio", "PIL", "matplotlib", "urllib3", "filelock", "fsspec", "wandb"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


_RUN_HELP = {
    "run": "a whole run: shards, pre-training, trimming, evaluation, report; goes on where it stopped",
    "pretrain": "a run up to and including pre-training",
    "trim": "a run up to and including trimming, with what the trimmed models reach",
    "evaluate": "a run up to and including evaluation; with --task, any export folder on any split",
}
_RUNNING = frozenset(_RUN_HELP)
_TAKING_OVERRIDES = _RUNNING | {"shard", "compare", "scale"}
_FLAGS = frozenset({"--help", "--json", "--verbose", "--fresh", "--print-config"})
_OPTIONS = _FLAGS | {"--config", "--take-from"}
_TARGETS = "--targets"
_KEYS = "docs/reference/config.md"


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
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
    add_data_commands(commands)
    _add_run_folder_commands(commands)
    _add_bench_commands(commands)
    _add_flops_command(commands)
    _add_score_command(commands)
    _add_compare_command(commands)
    _add_scale_command(commands)
    add_analyse_commands(commands)
    add_weight_commands(commands)
    add_cluster_commands(commands)
    take_both_spellings(parser)
    return parser


class _ShowVersion(argparse.Action):
    """Looks the version up only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints it and ends."""
        import importlib.metadata

        sys.stdout.write(f"trimline {importlib.metadata.version('trimline')}\n")
        parser.exit()


def _add_run(commands: Any, name: str, text: str) -> None:
    example = f"{name} configs/runs/demo.yaml --out runs/mine --seed 1"
    text = f"{text}. Any key of the configuration can be given as --key.sub VALUE"
    parser = add_command(commands, name, text, example, _run, f"{_KEYS}, or --print-config")
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML files; later ones win over earlier ones")
    parser.add_argument("--config", action="append", default=[], metavar="CONFIG", help="another one of them")
    parser.add_argument("--fresh", action="store_true", help="start over: remove what an earlier run left in `out`")
    taken = "another run's folder, of which finished stages are taken over that would be made just so here"
    parser.add_argument("--take-from", metavar="RUN", type=Path, help=taken)
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration as YAML, and stop")
    if name == "trim":
        wanted = "the wanted costs, such as '[1.0, 2.0x]'; the same as --trim.targets"
        parser.add_argument(_TARGETS, metavar="LIST", help=wanted)
    if name == "evaluate":
        add_export_options(parser)


def _add_run_folder_commands(commands: Any) -> None:
    text = "write the report.html of a run, a comparison or a scale experiment anew"
    parser = add_command(commands, "report", text, "report runs/demo", _report)
    parser.add_argument("run", metavar="RUN", help="run folder, or folder of a comparison or a scale experiment")
    text = "say how far a run is, from another terminal"
    parser = add_command(commands, "status", text, "status runs/demo --watch", _status)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--watch", action="store_true", help="show it again and again until the run ends")


def _add_bench_commands(commands: Any) -> None:
    text = "measure this machine, always as a ratio to a reference in the same run"
    kinds = add_group(commands, "bench", text, "bench vision --json")
    vision = "the vision tower, forward and backward, with each guidance against unpruned"
    _add_pruning_options(add_command(kinds, "vision", vision, "bench vision --batch 8 --json", _bench), 224, rounds=10)
    step = "ALBEF's pre-training step, online and momentum towers and three losses, pruned against unpruned"
    parser = add_command(kinds, "step", step, "bench step --image-size 256 --text-length 25 --json", _bench)
    _add_pruning_options(parser, 256, rounds=6)
    parser.add_argument("--text-length", type=int, default=25, metavar="TOKENS", help="of every text (%(default)s)")

    trim = "a model whose trimmers decide for themselves against the untrimmed one, and against what FLOPs promise"
    parser = add_command(kinds, "trim", trim, "bench trim --model meter_base --batch 1 --json", _bench)
    add_trim_bench_options(parser)

    shard = "writing shards, against webdataset's TarWriter, the disk, the checksums and the bare decoder"
    parser = add_command(kinds, "shard", shard, "bench shard --images DIR --json", _bench)
    add_shard_bench_options(parser)

    loader = "loading training batches, against the bare decoder in as many processes and against other loaders"
    parser = add_command(kinds, "loader", loader, "bench loader --images train2017.tar --json", _bench)
    add_loader_bench_options(parser)

    launch = "what Ray, DeepSpeed and checkpoints cost a pre-training step, against a bare loop; how long a start takes"
    parser = add_command(kinds, "launch", launch, "bench launch --model albef_small --every 20 --json", _bench)
    add_launch_bench_options(parser)


def _add_flops_command(commands: Any) -> None:
    text = "count a model's multiply-accumulates on a task, by module"
    example = "flops --model meter_base --task vqa --image-size 288 --text-length 10 --json"
    parser = add_command(commands, "flops", text, example, _flops)
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--model", required=True, help="a name of configs/models, or a YAML file with a `model`")
    parser.add_argument("--task", required=True, help="retrieval, vqa, nlvr2 or caption")
    parser.add_argument("--image-size", **whole, help="height and width in pixels (the file's)")
    parser.add_argument("--text-length", **whole, required=True, help="tokens of the text, special ones included")
    parser.add_argument("--answers", **whole, help="classes of METER's VQA head (3129)")
    parser.add_argument("--new-tokens", **whole, help="tokens that a decoder writes (4)")
    parser.add_argument("--beams", **whole, help="hypotheses that it carries along (3)")


def _add_score_command(commands: Any) -> None:
    text = "score a file of predictions against a data set's own annotations, as its evaluation server does"
    example = "score vqa --predictions results.json --annotations v2_mscoco_val2014_annotations.json"
    parser = add_command(commands, "score", text, example, _score)
    parser.add_argument("task", choices=["vqa", "captions", "snli_ve", "nlvr2"], help="which rules apply")
    parser.add_argument("--predictions", required=True, metavar="FILE", help="in the format that the server takes")
    parser.add_argument("--annotations", required=True, metavar="FILE", help="the data set's published file")
    subset = "score what is predicted, instead of refusing where predictions are missing"
    parser.add_argument("--subset", action="store_true", help=subset)


def _add_compare_command(commands: Any) -> None:
    text = "the same run with one thing changed at a time, over several seeds; goes on where it stopped"
    example = "compare configs/experiments/pruning.yaml --out runs/pruning"
    parser = add_command(commands, "compare", f"{text}. Keys can be given as --key VALUE", example, _compare, _KEYS)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files; later ones win over earlier ones")


def _add_scale_command(commands: Any) -> None:
    text = "the same pre-training at many batch sizes, pruned and not: speed, memory, loss, the largest batch that fits"
    example = "scale configs/scale/albef_tiny.yaml --out runs/scale"
    parser = add_command(commands, "scale", f"{text}. Keys can be given as --key VALUE", example, _scale, _KEYS)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files; later ones win over earlier ones")


def _add_pruning_options(parser: argparse.ArgumentParser, pixels: int, rounds: int) -> None:
    """What `bench vision` and `bench step` both understand; defaults that hang on the device are chosen later."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--model", choices=["base", "small", "tiny"], default="base", help="size (%(default)s)")
    names = "which to compare with the unpruned one, such as query,stage (all)"
    parser.add_argument("--variants", type=name_list, default=[], metavar="NAME,..", help=names)
    parser.add_argument("--image-size", **whole, default=pixels, help="height and width in pixels (%(default)s)")
    parser.add_argument("--patch", **whole, default=16, help="side of a patch in pixels (%(default)s)")
    parser.add_argument("--batch", **whole, help="samples at a time (8 on a CPU, more on a GPU)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to run (a GPU if there is one)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="bfloat16 is autocast (float32 on a CPU, else bfloat16)"
    )
    parser.add_argument("--threads", **whole, help="of torch on the CPU (one for each CPU that is granted)")
    counted = "that count; each runs every variant once, unpruned between them (%(default)s)"
    parser.add_argument("--rounds", **whole, default=rounds, help=counted)
    parser.add_argument("--warmup", **whole, default=2, help="rounds before them (%(default)s)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="use torch.compile (on a GPU only, if not given)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and the order of runs (%(default)s)")


def _run(options: argparse.Namespace, overrides: list[str]) -> Answer:
    if options.command == "evaluate" and options.task is not None:
        return evaluate_export_handler(options)
    if options.command == "evaluate":
        refuse_folders([*options.configs, *options.config])
    if options.command == "trim" and options.targets is not None:
        overrides = [*overrides, f"--trim.targets={options.targets}"]
    from launch.commands import run_command

    return run_command(
        [*options.configs, *options.config],
        overrides,
        until=None if options.command == "run" else options.command,
        fresh=options.fresh,
        take_from=options.take_from,
        print_config=options.print_config,
    )


def _report(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import report_command

    return report_command(Path(options.run))


def _status(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.commands import status_command

    return status_command(Path(options.run), options.watch, options.json)


def _bench(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.bench import bench_command

    return bench_command(options.what, options)


def _flops(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.flops import flops_command

    fields = ("task", "text_length", "answers", "new_tokens", "beams")
    return flops_command(options.model, options.image_size, {name: getattr(options, name) for name in fields})


def _score(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.score import score_command

    return score_command(options.task, Path(options.predictions), Path(options.annotations), options.subset)


def _compare(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.commands import compare_command

    return compare_command(options.configs, overrides)


def _scale(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.commands import scale_command

    return scale_command(options.configs, overrides)
