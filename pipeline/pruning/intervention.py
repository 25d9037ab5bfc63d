"""What all pruning methods share: where they act, that they remember what they chose, and that it can be repeated.

A method says at each of its layers which tokens stay or go together; everything else is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from pipeline.models.attention import Asked
from pipeline.models.packing import unpack
from pipeline.models.schedule import CLS, InBlock, Step, Streams, TokenStream
from pipeline.pruning.matching import Matching, apply_matching, match_origin
from pipeline.pruning.selection import Selection, apply_selection, select_origin, select_present


class Pruning(ABC):
    """The intervention of one method for one batch.

    Args:
        layers: Of the vision tower, from 0, at which it acts.
        between: Whether it acts between the layer's attention and MLP, or before the layer.
    """

    def __init__(self, layers: Iterable[int], between: bool) -> None:
        self.layers = sorted(layers)
        self.between = between
        self.selections: dict[int, Selection | Matching] = {}

    @abstractmethod
    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Selection | Matching | None:
        """Which tokens stay and which go together, None where all stay; the part that a method brings.

        Args:
            layer: One of `layers`.
            image: The tokens to choose from.
            asked: What the layer's attention was asked, where the method acts behind it.
        """

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Act on the image stream, or leave word to act inside the coming block."""
        if step.part != "vision" or step.layer not in self.layers:
            return streams, {}
        if self.between:
            return streams, {"image": InBlock(between=partial(self._act, step.layer))}
        return {**streams, "image": self._act(step.layer, streams["image"], None)}, {}

    def _act(self, layer: int, image: TokenStream, asked: Asked | None) -> TokenStream:
        image = unpack(image)
        chosen = self.choose(layer, image, asked)
        if chosen is None:
            return image
        self.selections[layer] = chosen
        return reduced(image, chosen, CLS - 1 - self.layers.index(layer))


class ReplayedPruning(Pruning):
    """Repeats in a second tower what a first one chose, layer by layer.

    Args:
        first: What the first tower was pruned by, after its forward.
    """

    def __init__(self, first: Pruning) -> None:
        super().__init__(first.selections, first.between)
        self.recorded = first.selections

    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Selection | Matching | None:
        """What the first tower chose here."""
        return self.recorded[layer]


def reduced(image: TokenStream, chosen: Selection | Matching, merged_as: int) -> TokenStream:
    """The stream with fewer tokens, origins followed; merged ones get the code `merged_as`."""
    if isinstance(chosen, Matching):
        assert image.present is None, "whole pictures are merged, without trimmed tokens"
        x, size = apply_matching(image.x, image.size, chosen)
        origin = None if image.origin is None else match_origin(image.origin, chosen, merged_as)
        return replace(image, x=x, size=size, origin=origin)
    assert image.size is None, "a selection does not say what size its merged token has"
    origin = None if image.origin is None else select_origin(image.origin, chosen, merged_as)
    present = None if image.present is None else select_present(image.present, chosen)
    return replace(image, x=apply_selection(image.x, chosen), present=present, origin=origin)
