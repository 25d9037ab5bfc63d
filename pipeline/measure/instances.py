"""What a fine-tuned model does with each instance of a split: what that costs, by module, and what each layer keeps.

METHODS.md section 5: retention by layer and module with its spread, cost of single instances, the cheapest and the
dearest of them.

B batch, C channels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.files import write_json
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.survivors import write_picture
from pipeline.tasks.classes import right_answer
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import Place, units_of
from pipeline.trimming.smarttrim import Decision

INSTANCES = "instances"
"""Folder of the files of `write_instances`, inside an evaluation's."""

SHOWN = 3
"""Of the cheapest and of the dearest instances."""

_QUANTILES = {"low": 0.05, "lower": 0.25, "middle": 0.5, "upper": 0.75, "high": 0.95}


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One that is shown.

    Attributes:
        macs: Its cost.
        key: Its picture's name.
        text: What was asked.
        said: What the model said.
        right: What is right; empty where nobody says.
        pixels: (C, H, W) uint8; of a pair of pictures (2, C, H, W).
    """

    macs: float
    key: str
    text: str
    said: str
    pixels: Tensor
    right: str = ""

    @property
    def rank(self) -> tuple[float, str, str]:
        """By which they are sorted, whichever process saw them."""
        return self.macs, self.key, self.text


@dataclass
class Instances:
    """What was seen of any number of instances; the same in whatever order they come, but for the last bits of sums.

    Attributes:
        kept: For each place how often each share of its units was kept.
        modules: Sums of multiply-accumulates of the model, by module.
        full_modules: Of the untrimmed one.
        cheapest: The first of them by cost.
        dearest: The last.
    """

    kept: dict[Place, Counter[float]] = field(default_factory=dict)
    modules: dict[str, float] = field(default_factory=dict)
    full_modules: dict[str, float] = field(default_factory=dict)
    cheapest: list[Instance] = field(default_factory=list)
    dearest: list[Instance] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: ClassificationModel,
        batch: ImageTextBatch,
        decisions: Mapping[str, Decision],
        said: Sequence[int],
        macs: Sequence[float],
    ) -> "Instances":
        """Those of a batch.

        Args:
            model: What trims them.
            batch: On any device.
            decisions: What was trimmed; empty for a model that trims nothing.
            said: Number of the class that each was given.
            macs: Cost of each.
        """
        units = units_of(model.backbone, batch.token_mask)
        shares = model.cost_model().kept_by_place(decisions, units)
        # One copy from the device for all places.
        rows = torch.stack([share.double() for share in shares.values()]).tolist() if shares else []
        found = cls(
            kept={place: Counter(row) for place, row in zip(shares, rows, strict=True)},
            modules=model.macs_by_module(decisions, units),
            full_modules=model.full_macs_by_module(units),
        )
        found._show(_chosen(model, batch, said, macs))
        return found

    def join(self, others: "Instances") -> None:
        """Takes those of further instances."""
        for place, shares in others.kept.items():
            self.kept.setdefault(place, Counter()).update(shares)
        for own, more in ((self.modules, others.modules), (self.full_modules, others.full_modules)):
            own.update({name: own.get(name, 0.0) + macs for name, macs in more.items()})
        self._show([*others.cheapest, *others.dearest])

    def _show(self, more: Iterable[Instance]) -> None:
        known = {each.rank: each for each in (*self.cheapest, *self.dearest, *more)}
        ordered = [known[rank] for rank in sorted(known)]
        self.cheapest, self.dearest = ordered[:SHOWN], ordered[::-1][:SHOWN]


def _chosen(
    model: ClassificationModel, batch: ImageTextBatch, said: Sequence[int], macs: Sequence[float]
) -> list[Instance]:
    """The cheapest and the dearest of a batch."""
    order = sorted(range(len(batch)), key=lambda row: (macs[row], batch.keys[row], batch.texts[row]))
    rows = dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]])
    return [
        Instance(
            macs=macs[row],
            key=batch.keys[row],
            text=batch.texts[row],
            said=model.classes.names[said[row]],
            right=right_answer(model.classes, batch, row),
            pixels=batch.pixels[row].cpu().clone(),  # a view would keep the whole batch in memory
        )
        for row in rows
    ]


def spread(shares: Mapping[float, int]) -> dict[str, float]:
    """Mean, standard deviation and quantiles of values, given as how often each occurs.

    Returns:
        ``mean``, ``std``, and ``low`` to ``high``: 5, 25, 50, 75 and 95% of the values are at most as large.
    """
    values = np.array(sorted(shares))
    counts = np.array([shares[value] for value in values])
    mean = float(values @ counts / counts.sum())
    std = float(np.sqrt(np.square(values - mean) @ counts / counts.sum()))
    below = np.cumsum(counts) / counts.sum()
    # A hair's breadth, for a sum of shares of instances may miss the quantile that it stands for.
    quantiles = {name: float(values[np.searchsorted(below, q - 1e-9)]) for name, q in _QUANTILES.items()}
    return {"mean": mean, "std": std, **quantiles}


def write_instances(path: Path, row: Mapping[str, Any], instances: Instances, macs: Sequence[float]) -> None:
    """Writes what was seen for the report, and the pictures that are shown.

    Args:
        path: The file, .json; the pictures lie beside it and bear its name.
        row: What tells this model and split from others: a row of results.json without its score.
        instances: What was seen.
        macs: Cost of each instance, in the order of the split.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = {
        name: [_saved(path, f"{name}-{number}", each) for number, each in enumerate(found)]
        for name, found in (("cheapest", instances.cheapest), ("dearest", instances.dearest))
    }
    value = {
        **{name: row[name] for name in ("stage", "method", "target", "task", "split", "samples", "full_gmacs")},
        "gmacs": [float(f"{each / 1e9:.6g}") for each in macs],
        "modules": {name: total / len(macs) / 1e9 for name, total in instances.modules.items()},
        "full_modules": {name: total / len(macs) / 1e9 for name, total in instances.full_modules.items()},
        "kept": [{**place._asdict(), **spread(shares)} for place, shares in instances.kept.items()],
        **shown,
    }
    write_json(path, value)


def _saved(path: Path, name: str, each: Instance) -> dict[str, Any]:
    """One instance in the form that the report reads, its picture beside the file."""
    pixels = torch.cat(list(each.pixels), 2) if each.pixels.dim() == 4 else each.pixels
    file = f"{path.stem}-{name}.png"
    height, width = write_picture(path.parent / file, pixels)
    said = {"key": each.key, "text": each.text, "said": each.said, "right": each.right, "gmacs": each.macs / 1e9}
    return {"image": file, "width": width, "height": height, **said}
