"""Baselines that take tokens out of the vision tower alone, the same number from every picture: TRIPS, EViT, ToMe.

They run alike in training and inference, for they leave whole batches. What stays is a share that is solved for the
wanted cost, where pre-training's (`pipeline.pruning`) is given.

B batch, n tokens beside CLS, P patches, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.measure.flops import Kept, LayerTokens
from pipeline.models.attention import Asked
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import PreNormBlock, init_transformer
from pipeline.models.linear import Linear
from pipeline.models.schedule import Advance, InBlock, Step, Streams, TokenStream, site
from pipeline.pruning.evit import AttentivePruning, attentive_macs
from pipeline.pruning.intervention import Pruning
from pipeline.pruning.selection import Selection
from pipeline.pruning.tome import TokenMerging, matching_macs
from pipeline.trimming.smarttrim import Decision
from pipeline.trimming.trimmers import group_of

ReductionName = Literal["trips", "evit", "tome"]

_LAYERS: Mapping[ReductionName, tuple[float, ...]] = {"trips": (4 / 12, 9 / 12), "evit": (3 / 12, 6 / 12, 9 / 12)}
"""Where tokens go by default, as shares of the depth: the 5th and 10th layer of 12; the 4th, 7th and 10th."""


@dataclass(frozen=True, kw_only=True)
class ReductionConfig:
    """One method and where it acts.

    Attributes:
        name: ``trips``: the text's CLS asks which tokens stay; ``evit``: the picture's own; ``tome``: like ones merge.
        layers: Between whose attention and MLP tokens go, from 0; () for the method's own. ToMe acts in all.
        fuse: Whether tokens that go are fused into one (not ToMe's).
    """

    name: ReductionName
    layers: tuple[int, ...] = ()
    fuse: bool = True


class ReducedVision(nn.Module):
    """What takes tokens out, with the queries that TRIPS learns.

    Args:
        backbone: Whose vision tower loses tokens.
        config: Method and place.
    """

    learned: frozenset[str] = frozenset()
    removes_while_training = True

    def __init__(self, backbone: Backbone, config: ReductionConfig) -> None:
        super().__init__()
        vision = backbone.config.vision
        self.config = config
        self.depth, self.patches, self.width, self.heads = vision.depth, vision.patches, vision.width, vision.heads
        self.layers = config.layers or tuple(
            sorted({round(share * vision.depth) for share in _LAYERS.get(config.name, ())})
        )
        if self.layers and not 0 <= min(self.layers) <= max(self.layers) < self.depth:
            raise UserError(
                f"trim.{config.name}.layers={list(self.layers)}: the vision tower's {self.depth} layers are numbered "
                f"from 0 to {self.depth - 1}"
            )
        self.queries = nn.ModuleDict()
        if config.name == "trips":
            self.queries = nn.ModuleDict({str(layer): _query(backbone, layer) for layer in self.layers})
        self.share = 1.0

    @property
    def looks_at_text(self) -> bool:
        """Whether the encoded text has a say in what goes."""
        return self.config.name == "trips"

    def set_share(self, share: float) -> None:
        """Sets the part of the tokens that each layer keeps (ToMe: what its merging leaves; 1 for all)."""
        self.share = share

    def run(self) -> "VisionRun":
        """The intervention for a batch."""
        return VisionRun(self, self._pruning())

    def layer_tokens(self, share: float) -> list[LayerTokens]:
        """Tokens with CLS at each layer's attention and MLP."""
        counts, present = [], 1 + self.patches
        kept, merged = self._keeps(share), self._merged(share)
        for layer in range(self.depth):
            entering = present
            if layer in kept:
                present = 1 + kept[layer] + self.config.fuse
            counts.append(LayerTokens(entering, present - merged[layer]))
            present -= merged[layer]
        return counts

    def kept_at(self, step: Step, advance: Advance, there_B: Tensor, share: float) -> Kept:
        """See `Trimmers.kept_at`."""
        if advance.stream != "image":
            return Kept(1 + there_B)
        layers = self.layer_tokens(share)
        own = layers[step.layer] if step.part == "vision" else LayerTokens(layers[-1].mlp, layers[-1].mlp)
        return Kept(torch.full_like(there_B, own.attention), torch.full_like(there_B, own.mlp))

    def own_macs(self, share: float | None = None) -> int:
        """MACs of choosing and of fusing or merging, for one picture."""
        layers = self.layer_tokens(self.share if share is None else share)
        if self.config.name == "tome":
            return matching_macs(layers, self.width, self.heads)
        acting = [layers[layer].attention for layer in self.layers]
        asked = sum(part.weight.numel() for part in self.queries.values() if isinstance(part, nn.Linear))
        return asked + attentive_macs(acting, self.width, self.config.fuse)

    def _keeps(self, share: float) -> dict[int, int]:
        """Tokens beside CLS that layers keep; those that would drop none are left out."""
        kept: dict[int, int] = {}
        present = self.patches
        for layer in self.layers if self.config.name != "tome" else ():
            keep = max(1, math.ceil(share * present))
            if keep + self.config.fuse < present:
                kept[layer] = keep
                present = keep + self.config.fuse
        return kept

    def _merged(self, share: float) -> list[int]:
        """Tokens that each layer merges into others, a number between two whole ones dealt out over the layers."""
        if self.config.name != "tome":
            return [0] * self.depth
        each, counts, present = (1 - share) * self.patches / 2, [], self.patches
        for layer in range(self.depth):
            counts.append(min(int((layer + 1) * each) - int(layer * each), present // 2))
            present -= counts[-1]
        return counts

    def _pruning(self) -> Pruning:
        if self.config.name == "tome":
            return TokenMerging(self._merged(self.share))
        kept = self._keeps(self.share)
        if self.config.name == "trips":
            return TextAttentivePruning(kept, self.config.fuse, self.queries)
        return AttentivePruning(kept, self.config.fuse)


def _query(backbone: Backbone, layer: int) -> nn.Linear:
    """The text's query in a layer, begun as the picture's own where both are equally wide."""
    block = backbone.visual_encoder.blocks[layer]
    assert isinstance(block, PreNormBlock)
    text, width = backbone.config.text.width, backbone.config.vision.width
    query = Linear(text, width)
    init_transformer(query, width)
    if text == width:
        with torch.no_grad():
            query.weight.copy_(block.attn.qkv.weight[:width])
            query.bias.copy_(block.attn.qkv.bias[:width])
    return query


class TextAttentivePruning(AttentivePruning):
    """TRIPS's choice: as EViT's, but what the text's CLS attends to stays.

    Args:
        keeps: Tokens beside CLS that each layer keeps.
        fuse: Whether the others are fused into one.
        queries: Linear maps of the text's CLS, by layer.
    """

    def __init__(self, keeps: Mapping[int, int], fuse: bool, queries: nn.ModuleDict) -> None:
        super().__init__(keeps, fuse)
        self.queries = queries
        self.text_BD: Tensor | None = None

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Take the text's CLS from where the text is encoded."""
        if step.part == "vision":
            self.text_BD = streams["text"].cls
        return super().before(step, streams)

    def choose(self, layer: int, image: TokenStream, asked: Asked | None) -> Selection:
        """Keep what the text attends to most."""
        assert asked is not None and self.text_BD is not None
        query_BD = self.queries[str(layer)](self.text_BD)
        return super().choose(layer, image, replace(asked, q=query_BD[:, None]))


class VisionRun:
    """A method's intervention for one batch, which also says what it left.

    Args:
        method: Whose numbers of tokens hold.
        pruning: What takes them out.
    """

    def __init__(self, method: ReducedVision, pruning: Pruning) -> None:
        self.pruning = pruning
        self.looks_at_text = method.looks_at_text
        self.layers = method.layer_tokens(method.share)
        self.decisions: dict[str, Decision] = {}

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Note what every stream has at the step, and take tokens out of the image."""
        for advance in step.advances:
            self.decisions[site(step, advance)] = self._decision(step, advance, streams[advance.stream])
        return self.pruning.before(step, streams)

    def _decision(self, step: Step, advance: Advance, stream: TokenStream) -> Decision:
        there_B = stream.x.new_full(stream.x.shape[:1], stream.x.shape[1] - 1.0, dtype=torch.float32)
        if stream.present is not None:
            there_B = stream.present[:, 1:].sum(1)
        if advance.stream != "image" or step.part != "vision":
            return Decision(group_of(advance.stream), there_B, None, None, None, stream.origin)
        left_B = torch.full_like(there_B, self.layers[step.layer].mlp - 1)
        return Decision("vision", left_B, None, None, there_B, stream.origin)
