"""What `trimline bench shard`, `loader`, `trim` and `launch` understand; imports nothing that takes time."""

import argparse
from typing import Any


def add_shard_bench_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `trimline bench shard`."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--images", metavar="DIR", help="pictures to write; without it JPEGs are made")
    parser.add_argument("--image-size", **whole, default=256, help="longer side of the made ones (%(default)s)")
    parser.add_argument("--samples", **whole, default=8000, help="of each run (%(default)s)")
    parser.add_argument("--shard-samples", **whole, default=1000, help="samples a shard (%(default)s)")
    parser.add_argument("--workers", **whole, help="processes of every contender (one for each CPU)")
    parser.add_argument("--out", metavar="DIR", help="where shards are written and removed (the temporary folder)")
    parser.add_argument("--rounds", **whole, default=5, help="that count; each runs every contender once (%(default)s)")
    parser.add_argument("--warmup", **whole, default=1, help="rounds before them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and the order of runs (%(default)s)")


def add_trim_bench_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `trimline bench trim`."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--model", default="meter_base", help="a name of configs/models, or a YAML file with a `model` (%(default)s)"
    )
    parser.add_argument("--image-size", **whole, default=288, help="height and width in pixels (%(default)s)")
    parser.add_argument("--text-length", **whole, default=10, help="tokens of a text, special ones included; in a "
                        "batch from half as many to half as many more (%(default)s)")  # fmt: skip
    targets: Any = [1.5, 2.0, 2.5, 3.0]
    parser.add_argument("--targets", type=_numbers, default=targets, metavar="X,..", help="speed-ups (1.5,2,2.5,3)")
    parser.add_argument("--batch", **whole, default=1, help="instances at a time (%(default)s)")
    parser.add_argument("--batches", **whole, default=1, help="different batches in turn, for one set of instances "
                        "again and again is faster than ever new ones (%(default)s)")  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to run (a GPU if there is one)")
    text = "bfloat16 is autocast (float32 on a CPU, else bfloat16)"
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help=text)
    parser.add_argument("--threads", **whole, help="of torch on the CPU (one for each CPU that is granted)")
    parser.add_argument("--rounds", **whole, default=10, help="that count; each runs every variant once (%(default)s)")
    parser.add_argument("--warmup", **whole, default=2, help="rounds before them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and the order of runs (%(default)s)")


def add_loader_bench_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `trimline bench loader`."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--images", metavar="PATH", help="folder, tar or zip of pictures; without it JPEGs are made")
    parser.add_argument("--image-size", **whole, default=640, help="longer side of the made ones (%(default)s)")
    parser.add_argument("--size", **whole, default=224, help="height and width that the model sees (%(default)s)")
    parser.add_argument("--samples", **whole, help="of a lap (about 300 MB of pictures)")
    parser.add_argument("--batch", **whole, default=32, help="samples a batch (%(default)s)")
    parser.add_argument("--workers", **whole, help="loader processes of every contender (one for each CPU)")
    names = "webdataset, energon, streaming, litdata; all or none"
    parser.add_argument(
        "--peers", type=name_list, default=["all"], metavar="NAME,..", help=f"other loaders: {names} (all)"
    )
    text = "folder of their environments, which are made on demand ($TRIMLINE_PEERS, else the cache folder)"
    parser.add_argument("--peer-env", metavar="DIR", help=text)
    parser.add_argument("--out", metavar="DIR", help="where shards are written and removed (the temporary folder)")
    parser.add_argument("--rounds", **whole, default=5, help="that count; each runs every contender once (%(default)s)")
    parser.add_argument("--warmup", **whole, default=1, help="rounds before them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and all orders (%(default)s)")


def add_launch_bench_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `trimline bench launch`."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--model", default="albef_small", help="a name of configs/models (%(default)s)")
    parser.add_argument("--image-size", **whole, help="height and width in pixels (the recipe's)")
    parser.add_argument("--batch", **whole, default=8, help="samples of a step (%(default)s)")
    parser.add_argument("--every", **whole, default=20, help="steps of a lap, with one checkpoint (%(default)s)")
    parser.add_argument("--threads", **whole, default=1, help="of torch in each process (%(default)s)")
    parser.add_argument("--parts", action="store_true", help="also our loop alone, and with DeepSpeed alone")
    parser.add_argument("--out", metavar="DIR", help="where shards and checkpoints go (the temporary folder)")
    parser.add_argument("--rounds", **whole, default=5, help="that count; each runs every way once (%(default)s)")
    parser.add_argument("--warmup", **whole, default=1, help="rounds before them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and the order of runs (%(default)s)")


def _numbers(text: str) -> list[float]:
    return [float(number) for number in name_list(text)]


def name_list(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
