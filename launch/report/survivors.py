"""Which patches and text tokens survive, drawn over the pictures step by step."""

import base64
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

INPUT = "input"
PRETRAINED = "pretrain"
# A picture is shown about this wide; larger files would only make the report heavy.
_MAX_SIDE = 800
_LAYER = re.compile(r"(.*\blayer )(\d+)")
_MAX_BYTES = 300_000
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is left after one step, for one sentence."""

    name: str
    rows: int
    columns: int
    kept: int
    """Patches left, of rows * columns."""
    gone: str
    """SVG path over the trimmed patches of earlier steps, in units of patches."""
    fresh: str
    """SVG path over the patches that this very step trimmed."""
    merged: int | None
    """How many tokens are there that others were merged into; None where there are some, of which older runs kept no
    number."""
    dropped_tokens: tuple[int, ...]
    fresh_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One sentence on one picture under one model, with a frame per step."""

    text: str
    label: str
    tokens: tuple[str, ...]
    gmacs: float | None
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The sentences of a picture under one model; their frames share one list of steps."""

    name: str
    steps: tuple[str, ...]
    panels: tuple[Panel, ...]
    in_common: str
    """Whether the sentences change what is left of the picture; empty for a single sentence."""

    @property
    def gmacs(self) -> float:
        """Mean over the sentences; infinite where it is not known."""
        known = [panel.gmacs for panel in self.panels if panel.gmacs is not None]
        return sum(known) / len(known) if known else math.inf


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with everything drawn over it."""

    name: str
    task: str
    """Of the models that look at it, where a run has several; else empty."""
    source: str
    """The picture itself, as a data: address."""
    width: int
    height: int
    models: tuple[Model, ...]

    @property
    def opened(self) -> int:
        """Place of the model that is shown first: the most trimmed one, not pre-training, which only prunes."""
        return min(
            range(len(self.models)), key=lambda at: (self.models[at].name == PRETRAINED, self.models[at].gmacs, -at)
        )


def read_pictures(
    entries: Iterable[Mapping[str, Any]], folder: Path, task: str = ""
) -> tuple[list[Picture], list[str]]:
    """Turns survivors.json into pictures with frames.

    Args:
        entries: Of it.
        folder: Where the pictures lie.
        task: Whose models look at them, where a run has several.

    Returns:
        The pictures, and a sentence for each one that could not be shown.
    """
    pictures, problems = [], []
    for entry in entries:
        try:
            name, sentences = str(entry["image"]), entry["sentences"]
            if not sentences:
                continue  # no model of this recipe removes patches
            models = _models(sentences)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"an entry of survivors.json does not tell of a picture: {error!r}")
            continue
        try:
            source, (width, height) = embed(folder, name)
        except (OSError, ValueError) as error:
            problems.append(f"picture {name} of the survivors cannot be shown: {error}")
            continue
        pictures.append(Picture(name=name, task=task, source=source, width=width, height=height, models=models))
    return pictures, problems


def embed(folder: Path, name: str) -> tuple[str, tuple[int, int]]:
    """A picture as a data: address, made smaller only where it is large, and its size as shown."""
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise ValueError("it does not lie beside survivors.json")
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        size, kind = image.size, str(image.format)
        if kind not in _MIME or len(data) > _MAX_BYTES:
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=90)
            data, kind, size = buffer.getvalue(), "JPEG", image.size
        else:
            image.load()  # a truncated file must not reach the page
    return f"data:{_MIME[kind]};base64,{base64.b64encode(data).decode()}", size


def _models(sentences: Sequence[Mapping[str, Any]]) -> tuple[Model, ...]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for sentence in sentences:
        groups.setdefault(str(sentence.get("model", "")), []).append(sentence)
    return tuple(_model(name, found) for name, found in groups.items())


def _model(name: str, sentences: Sequence[Mapping[str, Any]]) -> Model:
    steps: list[str] = []
    for sentence in sentences:
        names = join_steps(_names(sentence, "steps"), _names(sentence, "text_steps"))
        steps = join_steps(steps, names)
    panels = tuple(_panel(sentence, steps) for sentence in sentences)
    kept = [
        [(step_name(step), frozenset(map(int, step["kept"]))) for step in sentence.get("steps") or ()]
        for sentence in sentences
    ]
    common = in_common(kept) if len(kept) > 1 and all(kept) else ""
    return Model(name=name, steps=(INPUT, *steps), panels=panels, in_common=common)


def in_common(of_sentences: Sequence[Sequence[tuple[str, frozenset[int]]]]) -> str:
    """Whether sentences change what is left of a picture, and how much.

    Args:
        of_sentences: For each of two sentences or more the steps, each with the patches that are left.
    """
    count = len(of_sentences)
    if len({tuple(each) for each in of_sentences}) == 1:
        return f"all {count} sentences keep the same patches, at every step"
    last = [each[-1][1] for each in of_sentences]
    if not any(last):
        return f"no patch is left in the end, for none of the {count} sentences; before, they keep different ones"
    if len(set(last)) == 1:
        return f"all {count} sentences keep the same patches in the end, though not at every step"
    # Two that keep nothing say nothing of what both keep.
    shares = [len(one & other) / len(one | other) for one, other in itertools.combinations(last, 2) if one | other]
    pairs = "" if count == 2 else " (mean over pairs of sentences)"
    share = sum(shares) / len(shares)
    return f"of the patches that one of two sentences keeps in the end, both keep {share:.0%}{pairs}"


def _names(sentence: Mapping[str, Any], key: str) -> list[str]:
    return [step_name(step) for step in sentence.get(key) or ()]


def step_name(step: Mapping[str, Any]) -> str:
    """A step's name with its layer counted from 0; older runs, whose steps have no "layer", counted from 1."""
    name = str(step["name"])
    old = None if "layer" in step else _LAYER.fullmatch(name)
    return f"{old[1]}{int(old[2]) - 1}" if old else name


def join_steps(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """One order out of two that may share steps: each keeps its own; if none is shared, `first` leads."""
    if not set(first) & set(second):
        return [*first, *second]
    rest, joined = list(first), []
    for name in second:
        if name in rest:
            cut = rest.index(name) + 1
            joined += rest[:cut]
            rest = rest[cut:]
        elif name not in joined:
            joined.append(name)
    return joined + rest


def _panel(sentence: Mapping[str, Any], steps: Sequence[str]) -> Panel:
    tokens = tuple(str(token) for token in sentence.get("tokens") or ())
    label = sentence.get("label")
    return Panel(
        text=str(sentence["text"]),
        label="" if label is None else str(label).lower() if isinstance(label, bool) else str(label),
        tokens=tokens,
        gmacs=None if sentence.get("gmacs") is None else float(sentence["gmacs"]),
        frames=tuple(_frames(sentence, steps, len(tokens))),
    )


def _frames(sentence: Mapping[str, Any], steps: Sequence[str], token_count: int) -> Iterable[Frame]:
    """A frame for the input and one per step; what a step does not touch stays as it was."""
    patch_steps = {step_name(step): step for step in sentence.get("steps") or ()}
    text_steps = {step_name(step): step for step in sentence.get("text_steps") or ()}
    rows, columns = next((map(int, step["grid"]) for step in patch_steps.values()), (1, 1))
    merged: int | None
    kept, words, merged = set(range(rows * columns)), set(range(token_count)), 0
    yield _frame(INPUT, (rows, columns), (kept, kept), (words, words), token_count, merged)
    for name in steps:
        before, words_before = kept, words
        if name in patch_steps:
            kept = {int(patch) for patch in patch_steps[name]["kept"]}
            told = patch_steps[name].get("merged", 0)
            merged = None if told is True else int(told)
        if name in text_steps:
            words = {int(token) for token in text_steps[name]["kept"]}
        yield _frame(name, (rows, columns), (before, kept), (words_before, words), token_count, merged)


def _frame(
    name: str,
    grid: tuple[int, int],
    patches: tuple[set[int], set[int]],
    words: tuple[set[int], set[int]],
    token_count: int,
    merged: int | None,
) -> Frame:
    """A frame from the patches and tokens (before, after) its step."""
    rows, columns = grid
    trimmed = set(range(rows * columns)) - patches[1]
    dropped = set(range(token_count)) - words[1]
    return Frame(
        name=name,
        rows=rows,
        columns=columns,
        kept=rows * columns - len(trimmed),
        gone=cells_path(trimmed - patches[0], columns),
        fresh=cells_path(trimmed & patches[0], columns),
        merged=merged,
        dropped_tokens=tuple(sorted(dropped)),
        fresh_tokens=tuple(sorted(dropped & words[0])),
    )


def cells_path(patches: Iterable[int], columns: int) -> str:
    """An SVG path over patches, one unit each, neighbours in a row joined into one box.

    Args:
        patches: numbers of patches, counted along rows from the top left.
        columns: patches in a row.
    """
    path: list[str] = []
    run: list[int] = []
    for patch in [*sorted(patches), -1]:
        if run and (patch != run[-1] + 1 or patch % columns == 0):
            row, column = divmod(run[0], columns)
            path.append(f"M{column} {row}h{len(run)}v1h-{len(run)}z")
            run = []
        run.append(patch)
    return "".join(path)
