"""NLVR (version 1): human statements about pictures of three boxes with coloured shapes, true or false.

Format: https://github.com/lil-lab/nlvr/tree/master/nlvr (Suhr et al., ACL 2017): `train.json`, `dev.json`, `test.json`,
an object a line with identifier, directory, sentence and label, and pictures `<split>-<identifier>-<order>.png`. Train
has the first of the six orders of the boxes, dev and test all six: six samples of one group, over which consistency
is measured. `val` is whole `directory` folders of train, as the corpus's README recommends, so that it shares no
presentation with what is trained on; train is the rest. `drawn`, only where `sizes.drawn` asks for it, is no part of
the corpus: pictures of the same kind drawn from the seed (see `data_prep.nlvr_drawn`), to be trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, one_line
from data_prep.errors import UserError
from data_prep.json_stream import json_lines
from data_prep.nlvr_drawn import NlvrDrawnSplit
from data_prep.sources import PlannedSplit, SourceConfig, published
from data_prep.sources.chance import shuffled
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

# A change of what is drawn or said for a seed needs another number.
DRAWING = 3
VAL_FOLDERS = 8
# The held-out folders never change with the run's seed: recipes are chosen on them.
_VAL_SEED = "nlvr/val"
_PERMUTATIONS = {"train": 1, "dev": 6, "test": 6}
_LABELS = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One line of the corpus: a sentence, its truth, and the pictures it is about."""

    identifier: str
    directory: str
    sentence: str
    label: bool


def plan(config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans train, val, dev and test, as far as their files are there, and drawn where its size is given.

    Raises:
        UserError: where a file is missing or not as the corpus has it; for an odd size of drawn, whose pictures come
            in twos.
    """
    real = {name: size for name, size in config.sizes.items() if name != "drawn"}
    return published.plan(DATA, replace(config, sizes=real)) | _plan_drawn(config)


def _plan_drawn(config: SourceConfig) -> dict[str, PlannedSplit]:
    size = config.sizes.get("drawn", 0)
    if size % 2:
        raise UserError(f"data.sizes.drawn={size} must be even, for drawn pictures come in twos; try {size + 1}")
    if size == 0:
        return {}
    split = NlvrDrawnSplit(size=size, seed=config.seed)
    return {
        "drawn": PlannedSplit(
            identity={"drawing": DRAWING, "size": size, "seed": config.seed},
            load=lambda: split,
            size=size,
            shuffled=True,
        )
    }


def _part(file: Annotation) -> str:
    part = file.split or file.path.stem
    if part not in _PERMUTATIONS:
        raise UserError(
            f"{file.path} is not train.json, dev.json or test.json: say which, --annotations dev={file.path}"
        )
    return part


def _splits(request: Request) -> tuple[str, ...]:
    parts = [("train", "val") if _part(file) == "train" else (_part(file),) for file in request.files]
    return tuple(dict.fromkeys(split for part in parts for split in part))


def _read(request: Request) -> Iterator[Entry]:
    sizes, seed = request.config.sizes, request.config.seed
    for file in request.files:
        part = _part(file)
        examples = read_examples(file.path)
        yield from (Entry(split=part, id=f"line {n}", skip="malformed record") for n, one in examples if one is None)
        good = [one for _, one in examples if one is not None]
        held_out = val_folders(good) if part == "train" else frozenset[str]()
        splits = {part: [one for one in good if one.directory not in held_out]}
        if part == "train":
            splits["val"] = [one for one in good if one.directory in held_out]
        for split, chosen in splits.items():
            for one in _cut(chosen, part, sizes.get(split), f"nlvr/{split}/{seed}"):
                yield from (_entry(split, part, one, order) for order in range(_PERMUTATIONS[part]))


def _cut(examples: list[Example], part: str, limit: int | None, seed: str) -> list[Example]:
    """So many examples that their pictures are at most `limit`: those of one example stay together."""
    if limit is None:
        return examples
    kept = shuffled(range(len(examples)), seed)[: max(1, limit // _PERMUTATIONS[part])]
    return [examples[index] for index in sorted(kept)]


def _entry(split: str, part: str, example: Example, order: int) -> Entry:
    return Entry(
        split=split,
        id=example.identifier,
        key=f"{example.identifier}-{order}",
        pictures={"": [f"{part}-{example.identifier}-{order}.png"]},
        captions=[example.sentence] if example.label else [],
        statements=[{"text": example.sentence, "label": example.label}],
        group=example.identifier,
        fields={
            "presentation": example.identifier.partition("-")[0],
            "directory": example.directory,
            "permutation": order,
        },
    )


def val_folders(examples: Sequence[Example]) -> frozenset[str]:
    """The `directory` folders of train that are held out for validation: a tenth of them."""
    folders = sorted({example.directory for example in examples})
    return frozenset(shuffled(folders, _VAL_SEED)[: min(VAL_FOLDERS, len(folders) // 2)])


def read_examples(path: Path) -> list[tuple[int, Example | None]]:
    """Reads a file of the corpus.

    Returns:
        (line number, example), with None for a line that is not as the corpus has it.

    Raises:
        UserError: it is no text file.
    """
    return [(number, _example(value)) for number, value in json_lines(path)]


def _example(value: dict[str, Any] | None) -> Example | None:
    value = value or {}
    identifier, directory = str(value.get("identifier", "")), str(value.get("directory", ""))
    presentation, _, position = identifier.partition("-")
    sentence, label = one_line(value.get("sentence")), _LABELS.get(str(value.get("label")))
    if not (presentation.isdigit() and position.isdigit() and directory.isdigit() and sentence) or label is None:
        return None
    return Example(identifier=identifier, directory=directory, sentence=sentence, label=label)


_WHERE = "https://github.com/lil-lab/nlvr/tree/master/nlvr"
DATA = DataSet(
    name="nlvr",
    title="NLVR: human statements about drawn pictures of three boxes, true or false",
    layouts=(
        Layout(
            name="json lines",
            files=(
                Expected(names=("train.json",), what=_WHERE),
                Expected(names=("dev.json",), what=_WHERE),
                Expected(names=("test.json",), what=_WHERE, optional=True),
            ),
        ),
    ),
    pictures=(
        Expected(
            names=("images-train.tar", "images-dev.tar", "images"),
            what=f"the folders images of {_WHERE}, or tars of them",
        ),
    ),
    splits=("train", "val", "dev", "test", "drawn"),
    splits_of=_splits,
    read=_read,
    sized=True,
    notes="val is eight whole folders of train. --sizes.drawn N adds a split of N pictures drawn after the corpus's "
    "manner; dev and test have six pictures an example, and --sizes.dev keeps those of one example together.",
)
