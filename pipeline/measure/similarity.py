"""How alike a layer's tokens are, how alike its heads look, and how far two models' attention is apart.

The redundancy that trimming lives on (SmartTrim, arXiv 2305.15033, figures 2 and 3; METHODS.md section 5), of unpruned
and untrimmed models.

B batch, N tokens, M tokens that are attended to, D width, H heads.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.measure.bootstrap import group_interval
from pipeline.measure.layer_watch import LayerWatch, attention_map
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import InBlock, Step, Streams, site
from pipeline.precision import at_least_float32

Normalise = Callable[[Tensor], Tensor]
Metric = Literal["tokens", "heads", "divergence"]
Row = dict[str, Any]
LEAST_CHANCE = 1e-9
"""Chances below count as this, so that no divergence is infinite."""


def mean_cosine(x_BND: Tensor, present_BN: Tensor | None = None) -> Tensor:
    """(B,) mean cosine over all pairs i < j of vectors.

    By the square of the sum of unit vectors, so no pair is written out.

    Args:
        x_BND: Vectors.
        present_BN: 1 or True at those that count, at least two a row; None where all do.
    """
    unit_BND = F.normalize(at_least_float32(x_BND), dim=-1)
    count_B: Tensor | int = x_BND.shape[1]
    if present_BN is not None:
        unit_BND = unit_BND * present_BN[..., None]
        count_B = present_BN.sum(1)
    both_B = unit_BND.sum(1).square().sum(-1) - unit_BND.square().sum((1, 2))
    return both_B / (count_B * (count_B - 1))


def head_similarity(maps_BHNM: Tensor, present_BN: Tensor | None = None) -> Tensor:
    """(B,) mean cosine of what two heads attend to, over head pairs and query rows.

    Args:
        maps_BHNM: Attention maps.
        present_BN: 1 or True at queries that count; None where all do.
    """
    batch, _, queries, _ = maps_BHNM.shape
    rows = maps_BHNM.transpose(1, 2).flatten(0, 1)
    return _over_queries(mean_cosine(rows).view(batch, queries), present_BN)


def attention_divergence(first_BHNM: Tensor, second_BHNM: Tensor, present_BN: Tensor | None = None) -> Tensor:
    """(B,) KL( first ‖ second ) in nats of what each query attends to, mean over heads and query rows; never below 0.

    Args:
        first_BHNM: Attention maps of one model.
        second_BHNM: Of the other, for the same input.
        present_BN: 1 or True at queries that count; None where all do.
    """
    first, second = at_least_float32(first_BHNM), at_least_float32(second_BHNM).clamp(min=LEAST_CHANCE)
    apart_BHN = (torch.xlogy(first, first.clamp(min=LEAST_CHANCE)) - first * second.log()).sum(-1)
    return _over_queries(apart_BHN.mean(1), present_BN).clamp(min=0)  # equal maps may give a little less, by rounding


def _over_queries(values_BN: Tensor, present_BN: Tensor | None) -> Tensor:
    if present_BN is None:
        return values_BN.mean(1)
    there_BN = present_BN.to(values_BN.dtype)
    return (values_BN * there_BN).sum(1) / there_BN.sum(1)


@dataclass
class _Values:
    """Numbers of single samples by (part, layer, stream, metric), in the order they were first met."""

    by_place: dict[tuple[str, int, str, Metric], list[float]] = field(default_factory=dict)
    clusters: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, place: tuple[str, int, str, Metric], values_B: Tensor) -> None:
        self.by_place.setdefault(place, []).extend(values_B.double().tolist())

    def look_at(self, batch: ImageTextBatch) -> None:
        """Counts the samples whose numbers were added; a picture may stand with several texts."""
        self.clusters += batch.clusters
        self.keys |= set(batch.keys)

    def rows(self) -> list[Row]:
        if not self.clusters:
            raise UserError("the split has no pairs to look at")
        if len(set(self.clusters)) < 2:
            raise UserError(
                f"{len(self.clusters)} pairs of one group of pictures give no interval; look at more with --samples"
            )
        counts = {"pictures": len(self.keys), "groups": len(set(self.clusters))}
        return [_row(place, values, self.clusters) | counts for place, values in self.by_place.items()]


def _row(place: tuple[str, int, str, Metric], values: Sequence[float], clusters: Sequence[str]) -> Row:
    part, layer, stream, metric = place
    interval = group_interval(values, clusters)
    found = {"part": part, "layer": layer, "stream": stream, "metric": metric, "samples": len(values)}
    return found | {"value": interval.value, "low": interval.low, "high": interval.high}


class SimilarityWatch:
    """An intervention that only looks: similarities of what each layer is given, and of the maps it makes of that."""

    def __init__(self, values: _Values) -> None:
        self._values = values

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Look at every stream that advances."""
        for advance in step.advances:
            stream = streams[advance.stream]
            at = advance.part or step.part, step.layer, advance.stream
            self._values.add((*at, "tokens"), mean_cosine(stream.x, stream.present))
            maps_BHNN = attention_map(advance, stream)
            if maps_BHNN.shape[1] > 1:
                self._values.add((*at, "heads"), head_similarity(maps_BHNN, stream.present))
        return streams, {}


@torch.no_grad()
def measure_similarity(model: Backbone, normalise: Normalise, batches: Iterable[ImageTextBatch]) -> list[Row]:
    """Token and head similarity by layer, over pairs of images and captions, unpruned.

    Args:
        model: In evaluation mode.
        normalise: Maps uint8 pixels to the model's input.
        batches: On its device.

    Returns:
        Rows {"part", "layer", "stream", "metric", "value", "low", "high", "samples", "pictures",
        "groups"}, layers from 0; ``tokens`` is that of what enters the layer, ``heads`` of its self-attention's maps.
        Intervals of 95% by resampling groups of pictures (`ImageTextBatch.clusters`).

    Raises:
        UserError: There are no pairs, or they are of one group of pictures.
    """
    values = _Values()
    for batch in batches:
        if not len(batch):
            continue
        ids_BL, mask_BL, watch = batch.token_ids, batch.token_mask, SimilarityWatch(values)
        text = model.encode_text(ids_BL, mask_BL, [watch])
        image = model.encode_image(normalise(batch.pixels), [watch], text)
        if model.fusion_steps:
            model.fuse(model.begin_fusion(text, ids_BL, mask_BL), image, [watch])
        values.look_at(batch)
    return values.rows()


@torch.no_grad()
def measure_divergence(
    first: Backbone, second: Backbone, normalise: Normalise, batches: Iterable[ImageTextBatch]
) -> list[Row]:
    """How far the attention of two vision towers is apart, layer by layer: KL( first ‖ second ).

    Args:
        first: In evaluation mode, such as a vision-language model.
        second: Likewise, with a tower of the same layers, heads and patches, such as the one training began from.
        normalise: Maps uint8 pixels to both models' input.
        batches: On their device.

    Returns:
        Rows as of `measure_similarity`, the metric being ``divergence``, in nats.

    Raises:
        UserError: The towers differ in shape, or there are no two pictures.
    """
    _check_alike(first, second)
    steps = first.visual_encoder.steps
    sites = frozenset(site(step, advance) for step in steps for advance in step.advances)
    values = _Values()
    for batch in batches:
        if not len(batch):
            continue
        seen = []
        for model in (first, second):
            watch = LayerWatch(frozenset(), sites)
            model.encode_image(normalise(batch.pixels), [watch])
            seen.append(watch.seen)
        for step in steps:
            name = f"attention/{site(step, step.advances[0])}"
            values.add(
                ("vision", step.layer, "image", "divergence"), attention_divergence(seen[0][name], seen[1][name])
            )
        values.look_at(batch)
    return values.rows()


def _check_alike(first: Backbone, second: Backbone) -> None:
    for name in ("depth", "heads", "height", "width_px", "patch"):
        own, other = getattr(first.config.vision, name), getattr(second.config.vision, name)
        if own != other:
            raise UserError(f"the vision towers differ: {name} {own} and {other}; give models with the same tower")
