"""The one progress bar of `trimline bench`, and the laps that most benches run under it."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from pipeline.measure.timing import interleave

T = TypeVar("T")

_SECONDS_UNTIL_SHOWN = 5.0  # a bench of a second needs no bar


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, after a while and gone at the end; what it gives is called after each run with its name."""
    shown = {"delay": _SECONDS_UNTIL_SHOWN, "leave": False, "file": sys.stderr, "unit": " runs"}
    with tqdm(desc=f"bench {what}", total=total, disable=not sys.stderr.isatty(), **shown) as bar:

        def tick(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        yield tick


def interleaved(what: str, runs: Mapping[str, Callable[[], T]], options: argparse.Namespace) -> dict[str, list[T]]:
    """`interleave` with the rounds, warm-up and seed that were asked for, under the bar."""
    with counted(what, len(runs) * (options.rounds + options.warmup)) as tick:
        return interleave(runs, rounds=options.rounds, warmup=options.warmup, seed=options.seed, tick=tick)
