"""What is left of pictures and sentences as rows of a CSV, for run reports and `trimline analyse survivors`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launch.report.survivors import step_name

COLUMNS = ("model", "picture", "sentence", "layer", "patch_row", "patch_column", "token", "word", "kept")


class Step(NamedTuple):
    """What is left behind a layer: numbers of patches, counted along rows, or of tokens."""

    name: str
    kept: frozenset[int]


def kept_rows(
    grid: tuple[int, int], patches: Iterable[Step], tokens: Sequence[str], words: Iterable[Step]
) -> Iterator[list[Any]]:
    """Every patch and every token at every step, as `COLUMNS` from "layer" on; 1 where it is left.

    Args:
        grid: Rows and columns of patches.
        patches: Those that are left, by step.
        tokens: Of the sentence; empty where none are trimmed.
        words: Tokens that are left, by step.
    """
    rows, columns = grid
    for step in patches:
        for patch in range(rows * columns):
            yield [step.name, *divmod(patch, columns), "", "", int(patch in step.kept)]
    for step in words:
        for token, word in enumerate(tokens):
            yield [step.name, "", "", token, word, int(token in step.kept)]


def survivor_rows(entries: Iterable[Mapping[str, Any]], task: str = "") -> list[dict[str, Any]]:
    """The rows of survivors.json; entries that do not tell of a picture are left out, the report names them.

    Args:
        entries: Of it.
        task: Whose models look at the pictures, where a run has several.
    """
    found: list[dict[str, Any]] = []
    for entry in entries:
        try:
            rows = [row for sentence in entry["sentences"] for row in _of_sentence(str(entry["image"]), sentence)]
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        found += [{"task": task, **dict(zip(COLUMNS, row, strict=True))} for row in rows]
    return found


def _of_sentence(picture: str, sentence: Mapping[str, Any]) -> Iterator[list[Any]]:
    patches, words = (
        [Step(step_name(step), frozenset(map(int, step["kept"]))) for step in sentence.get(key) or ()]
        for key in ("steps", "text_steps")
    )
    rows, columns = next((map(int, step["grid"]) for step in sentence.get("steps") or ()), (1, 1))
    tokens = [str(token) for token in sentence.get("tokens") or ()]
    for row in kept_rows((rows, columns), patches, tokens, words):
        yield [str(sentence.get("model", "")), picture, str(sentence["text"]), *row]
