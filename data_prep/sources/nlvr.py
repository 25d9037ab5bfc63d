"""NLVR (version 1): human statements about pictures of three boxes with coloured shapes, true or false.

Files: `train.json`, `dev.json` (JSON lines), `images-train.tar`, `images-dev.tar`, as in the corpus. Train
has the first of the six orders of the boxes, dev all six: six samples of one group, over which consistency
is measured. `val` is whole `directory` folders of train, as the corpus's README recommends, so that it shares no
presentation with what is trained on; train is the rest. `drawn`, only where `sizes.drawn` asks for it, is no part of
the corpus: pictures of the same kind drawn from the seed (see `data_prep.nlvr_drawn`), to be trained on.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.nlvr_drawn import NlvrDrawnSplit
from data_prep.records import Record, Skipped, Split
from data_prep.sources import PlannedSplit, SourceConfig, find_root
from data_prep.sources.raw import TarPictures, checksums, lines_of, shuffled

_REAL = ("train", "val", "dev")
SPLITS = (*_REAL, "drawn")
# A change of what is drawn or said for a seed needs another number.
DRAWING = 2
VAL_FOLDERS = 8
# The held-out folders never change with the run's seed: recipes are chosen on them.
_VAL_SEED = "nlvr/val"
_FILES = {"train": ("train.json", "images-train.tar"), "dev": ("dev.json", "images-dev.tar")}
_PERMUTATIONS = {"train": 1, "dev": 6}
_LABELS = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One line of the corpus: a sentence, its truth, and the pictures it is about."""

    identifier: str
    directory: str
    sentence: str
    label: bool


@dataclass(frozen=True, kw_only=True)
class NlvrSplit:
    """Examples times permutations; sample i is example i // permutations in order i % permutations."""

    part: str
    examples: Sequence[Example]
    pictures: TarPictures

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.examples) * _PERMUTATIONS[self.part]

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        """Reads the samples of the positions start to stop - 1."""
        wanted = [divmod(position, _PERMUTATIONS[self.part]) for position in range(start, stop)]
        names = [self._picture(self.examples[index], order) for index, order in wanted]
        for (index, order), data in zip(wanted, self.pictures.read(names), strict=True):
            example = self.examples[index]
            key = f"{example.identifier}-{order}"
            if data is None:
                yield Skipped(key=key, reason="picture missing")
            else:
                yield _record(example, key, order, data)

    def _picture(self, example: Example, order: int) -> str:
        return f"{self.part}/images/{example.directory}/{self.part}-{example.identifier}-{order}.png"


def _record(example: Example, key: str, order: int, data: bytes) -> Record:
    return Record(
        key=key,
        source="nlvr",
        id=example.identifier,
        images={"": data},
        captions=[example.sentence] if example.label else [],
        statements=[{"text": example.sentence, "label": example.label}],
        group=example.identifier,
        fields={
            "presentation": example.identifier.partition("-")[0],
            "directory": example.directory,
            "permutation": order,
        },
    )


def plan(config: SourceConfig) -> dict[str, PlannedSplit]:
    """Plans train, val and dev, and drawn where its size is given.

    Raises:
        UserError: where a file is missing or not as the corpus has it; for an odd size of drawn, whose pictures come
            in twos.
    """
    root = find_root(config, (*_FILES["train"], *_FILES["dev"]), "nlvr")
    sums = {part: checksums(root, files) for part, files in _FILES.items()}
    plans = {}
    for name in _REAL:
        limit = config.sizes.get(name)
        if limit == 0:
            continue
        part = "dev" if name == "dev" else "train"
        identity = {"files": sums[part], "limit": limit, "seed": config.seed if limit else None}
        load = functools.partial(_load, root, name, part, limit, config.seed)
        plans[name] = PlannedSplit(identity=identity, load=load)
    return plans | _plan_drawn(config)


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


def _load(root: Path, name: str, part: str, limit: int | None, seed: int) -> Split:
    text, tar = _FILES[part]
    examples = read_examples(root / text)
    if part == "train":
        held_out = val_folders(examples)
        examples = [e for e in examples if (e.directory in held_out) == (name == "val")]
    if limit is not None:
        kept = shuffled(range(len(examples)), f"nlvr/{name}/{seed}")[: max(1, limit // _PERMUTATIONS[part])]
        examples = [examples[index] for index in sorted(kept)]
    return NlvrSplit(part=part, examples=examples, pictures=TarPictures.of(root / tar))


def val_folders(examples: Sequence[Example]) -> frozenset[str]:
    """The `directory` folders of train that are held out for validation: a tenth of them."""
    folders = sorted({example.directory for example in examples})
    return frozenset(shuffled(folders, _VAL_SEED)[: min(VAL_FOLDERS, len(folders) // 2)])


def read_examples(path: Path) -> list[Example]:
    """Reads a file of the corpus.

    Raises:
        UserError: naming the first line that is not as the corpus has it.
    """
    examples, seen = [], set[str]()
    for number, line in enumerate(lines_of(path), start=1):
        try:
            example = _example(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not an NLVR example ({type(error).__name__}: {error}); wanted: one "
                "JSON object a line with sentence, label, identifier and directory"
            ) from error
        if example.identifier in seen:
            raise UserError(f"{path}, line {number}: identifier {example.identifier} occurs twice; remove one line")
        seen.add(example.identifier)
        examples.append(example)
    if not examples:
        raise UserError(f"{path} is empty; wanted: one NLVR example a line")
    return examples


def _example(value: dict[str, Any]) -> Example:
    presentation, _, position = value["identifier"].partition("-")
    if not (presentation.isdigit() and position.isdigit() and value["directory"].isdigit()):
        raise ValueError(f"identifier {value['identifier']!r} in directory {value['directory']!r}")
    return Example(
        identifier=value["identifier"],
        directory=value["directory"],
        sentence=str(value["sentence"]).strip(),
        label=_LABELS[value["label"]],
    )
