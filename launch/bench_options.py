"""What `trimline bench shard` understands; imports nothing that takes time."""

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


def name_list(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
