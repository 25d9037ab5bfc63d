"""What chance and pruning chose for a batch, the same rows of it whichever process has them.

Negatives are drawn by similarity and tokens by score, so a difference in the last bit may choose another one, and the
losses would be those of something else. Here both are given: negatives from a generator, selections from one process.
"""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.data.batch import ImageTextBatch
from pipeline.models.schedule import TokenStream
from pipeline.objectives.itm import Negatives
from pipeline.pruning.intervention import Pruning, ReplayedPruning
from pipeline.pruning.selection import Selection
from pipeline.tasks.online import Draws, OnlineModel

Selections = dict[int, Selection]


def rows_of(seeds_B: Tensor) -> Tensor:
    """Where samples of `small_batch` stand in it."""
    return seeds_B % 1000


def give_negatives(online: OnlineModel, batch: int) -> None:
    """Every draw of this model has negatives from a generator; the pool is the whole batch."""
    draw = online.draw

    def recorded(part: ImageTextBatch) -> Draws:
        generator = torch.Generator().manual_seed(int(part.draw_seeds[0]) // 1000)
        ahead_2N = torch.randint(1, batch, (2, batch), generator=generator)
        image_N, text_N = (torch.arange(batch) + ahead_2N) % batch
        rows = rows_of(part.draw_seeds)
        return replace(draw(part), negatives=Negatives(image_N[rows], text_N[rows]))

    online.draw = recorded  # type: ignore[method-assign]


def record_selections(online: OnlineModel) -> list[Selections]:
    """Of every pruned encoding of pictures that follows, layer by layer."""
    found: list[Selections] = []
    pruned_image = online.pruned_image

    def recording(pixels: Tensor, sentence_BD: Tensor, seeds_B: Tensor) -> tuple[TokenStream, Pruning | None]:
        image, pruning = pruned_image(pixels, sentence_BD, seeds_B)
        assert pruning is not None
        found.append(dict(pruning.selections))  # type: ignore[arg-type]
        return image, pruning

    online.pruned_image = recording  # type: ignore[method-assign]
    return found


def replay_selections(online: OnlineModel, recorded: list[Selections], batch: int) -> None:
    """Pictures are pruned as `record_selections` saw it in the process that had the whole batch."""
    waiting = iter(recorded)

    def replaying(pixels: Tensor, sentence_BD: Tensor, seeds_B: Tensor) -> tuple[TokenStream, Pruning]:
        rows = rows_of(seeds_B)
        own = len(rows.unique())
        rows = rows + batch * (torch.arange(len(rows)) // own)  # METER encodes each picture for two texts
        chosen = {layer: _picked(selection, rows) for layer, selection in next(waiting).items()}
        first: Any = SimpleNamespace(selections=chosen, between=False)
        pruning = ReplayedPruning(first)
        return online.model.encode_image(pixels, [pruning]), pruning

    online.pruned_image = replaying  # type: ignore[method-assign]


def _picked(selection: Selection, rows: Tensor) -> Selection:
    parts = {field.name: getattr(selection, field.name) for field in fields(selection)}
    return Selection(**{name: None if tensor is None else tensor[rows] for name, tensor in parts.items()})
