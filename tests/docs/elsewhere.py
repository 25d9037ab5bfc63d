"""Whether a test runs a command of the documentation: read from the test's code, nothing is run."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.docs.pages import ROOT

Words = list[str | None]
"""Of a command as a test gives it; None where it is no constant."""


def runs(test: str, command: str) -> bool:
    """Whether a test runs the command, its words in their order.

    The first word stands as it is. A later one does too, or is put in by a variable: then the test has the word, or the
    name of the file that it is, as a constant. A word in capitals, and a folder, are whatever the test makes.

    Args:
        test: Path of its file from the repository's root.
        command: As the documentation gives it, or its beginning; `make TARGET` is what the Makefile runs.
    """
    tree = ast.parse((ROOT / test).read_text("utf-8"))
    known = {Path(node.value).name for node in ast.walk(tree) if isinstance(node, ast.Constant)
             and isinstance(node.value, str)}  # fmt: skip
    return any(_is(_made(command).split()[1:], given, known) for given in _given(tree))


def _made(command: str) -> str:
    if not command.startswith("make "):
        return command
    makefile, target = (ROOT / "Makefile").read_text("utf-8"), re.escape(command.split()[1])
    (recipe,) = re.findall(rf"^{target}:.*\n\t\$\(BIN\)/(trimline .*)", makefile, re.MULTILINE)
    return str(recipe)


def _given(tree: ast.AST) -> Iterator[Words]:
    """What is given to `main`, or to `python -m launch` in a process of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "main" and node.args:
            if isinstance(node.args[0], ast.List):
                yield _words(node.args[0])
        elif isinstance(node, ast.List):
            words = _words(node)
            if "launch" in words and words[: words.index("launch")][-1:] == ["-m"]:
                yield words[words.index("launch") + 1 :]


def _words(node: ast.List) -> Words:
    return [str(each.value) if isinstance(each, ast.Constant) else None for each in node.elts]


def _is(wanted: Sequence[str], given: Words, known: set[str]) -> bool:
    if given[:1] != [*wanted[:1]]:
        return False
    at = 1
    for word in wanted[1:]:
        if at < len(given) and given[at] == word:
            at += 1
            continue
        if at >= len(given) or given[at] is not None:
            return False  # something else stands there
        # Not further: one variable may stand for several words.
        if not (word.isupper() or ("/" in word and not Path(word).suffix) or Path(word).name in known):
            return False
    return True
