"""What is special about the words after `trimline shard`: options with several values, and a help for each source."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from data_prep.errors import UserError

_LISTS = frozenset({"--annotations", "--images", "--columns.keep", "--columns.names", "--clean.exclude"})
_SHORT = {"--exclude": "--clean.exclude"}
_SPLITS = "--sizes."


def gather_lists(words: Sequence[str]) -> list[str]:
    """Makes ``--images A B --images C`` one option with a JSON list, as the configuration wants it.

    Hyphens do for underscores (``--max-side``), and ``--exclude`` for ``--clean.exclude``. Splits
    are called as they are (``--sizes.test-dev``).
    """
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            name = name if name.startswith(_SPLITS) else "--" + name[2:].replace("-", "_")
            name = _SHORT.get(name, name)
            option = name if name in _LISTS else ""
            if not option:
                rest.append(name + equals + value)
            elif equals:
                lists.setdefault(option, []).append(value)
        elif option:
            lists.setdefault(option, []).append(word)
        else:
            rest.append(word)
    return [*rest, *(part for name, values in lists.items() for part in (name, json.dumps(values)))]


class ShowShardHelp(argparse.Action):
    """The help of `trimline shard`, and of a source where one is named before."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Prints it and ends."""
        from launch.commands import shard_help

        source = getattr(namespace, "source", None)
        try:
            text = shard_help(source)
        except UserError as error:
            parser.error(str(error))
        sys.stdout.write(f"{text}\n" if source else f"{parser.format_help()}\n{text}\n")
        parser.exit()
