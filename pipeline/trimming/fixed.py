"""What decides on tokens and heads without looking at them: chance, and an order that was settled before training.

Both keep what is ranked below a share; a rank is a place in an order over its length, in (0, 1).

B batch, N tokens, L text tokens, P patches, T packed tokens, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.data.seeds import uniforms
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import TokenStream, site

_HASH = 0x5851F42D4C957F2D
_PATCHES = 0x70617463686573
_ANY_SEED = 2**62


@dataclass(frozen=True)
class Place:
    """Number of a stream's layer, from 1, and how many layers the stream goes through."""

    layer: int
    layers: int


def places(backbone: Backbone) -> dict[str, Place]:
    """The place of each site; text that begins fusion from its words once more begins to count there."""
    lists: list[list[str]] = []
    running: dict[str, list[str]] = {}
    for step in backbone.schedule:
        if backbone.fuses_from_words and step.part == "fusion" and step.layer == 0:
            running.pop("text", None)
        for advance in step.advances:
            if advance.trimmed not in running:
                running[advance.trimmed] = []
                lists.append(running[advance.trimmed])
            running[advance.trimmed].append(site(step, advance))
    return {name: Place(number, len(names)) for names in lists for number, name in enumerate(names, 1)}


def decay_rate(share: float, layers: int) -> float:
    """The r whose powers up to the number of layers have the mean `share`: each layer keeps r of what is left."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        mean = sum(middle**layer for layer in range(1, layers + 1)) / layers
        low, high = (low, middle) if mean > share else (middle, high)
    return low


class RandomTokens(nn.Module):
    """Keeps what the draw ranks first: each layer the same part of what the one before it kept.

    Args:
        place: Number of the layer.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.share = 1.0

    def forward(self, stream: TokenStream, ranks_BN: Tensor) -> Tensor:
        """Scores of all tokens, (B, N) or packed (T,); a token stays where it is >= 0, and CLS whatever it is."""
        assert stream.origin is not None, "tokens are drawn by where they come from"
        origin = stream.origin.clamp(min=0)
        rows = len(stream.x) if stream.offsets is None else len(stream.offsets) - 1
        ranks_BN = ranks_BN.repeat(rows // len(ranks_BN), 1)  # both pictures of a pair have the draw of its text
        if stream.offsets is None:
            return self.level(self.share) - ranks_BN.gather(1, origin)
        lengths_B = torch.tensor(stream.offsets, device=origin.device).diff()
        rows_T = torch.arange(len(lengths_B), device=origin.device).repeat_interleave(lengths_B)
        return self.level(self.share) - ranks_BN[rows_T, origin]

    def level(self, share: float) -> float:
        """Share of the first tokens that this layer keeps, where `share` is the mean over layers."""
        return 1.0 if share >= 1 else decay_rate(share, self.place.layers) ** self.place.layer

    def count(self, there_B: Tensor, share: float) -> Tensor:
        """How many of the tokens beside CLS stay."""
        return (self.level(share) * there_B + 0.5).floor()


def random_ranks(ids_BL: Tensor, mask_BL: Tensor, patches: int, fresh: bool) -> dict[str, Tensor]:
    """Ranks of the patches (B, P) and of the words (B, L, CLS at 0), drawn for each instance.

    Args:
        ids_BL: Token ids.
        mask_BL: True at real tokens.
        patches: P.
        fresh: Whether every call draws anew, as in training; else the text of an instance is its seed, so that it is
            judged alike in every batch.
    """
    weights_L = _powers(ids_BL.shape[1], ids_BL.device)
    seeds_B = ((ids_BL + 1) * mask_BL * weights_L).sum(1)
    if fresh:
        seeds_B = torch.randint(_ANY_SEED, seeds_B.shape, device=seeds_B.device)
    everywhere = torch.ones(len(ids_BL), patches, dtype=torch.bool, device=ids_BL.device)
    words_BL = mask_BL.bool().clone()
    words_BL[:, 0] = False
    return {"image": _ranks(seeds_B ^ _PATCHES, everywhere), "text": _ranks(seeds_B, words_BL)}


def _powers(count: int, device: torch.device) -> Tensor:
    """Odd weights of a hash of the ids; sums wrap around at 64 bits."""
    weight, weights = 1, []
    for _ in range(count):
        weight = (weight * _HASH) % (1 << 64)
        weights.append(weight - (1 << 64) if weight >> 63 else weight)
    return torch.tensor(weights, device=device)


def _ranks(seeds_B: Tensor, there_BN: Tensor) -> Tensor:
    """Places in a drawn order of those that are there, over their number; beyond 1 elsewhere."""
    drawn_BN = uniforms(seeds_B, there_BN.shape[1]).masked_fill(~there_BN, 2.0)
    place_BN = drawn_BN.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    count_B1 = there_BN.sum(1, keepdim=True).clamp(min=1)
    return ((place_BN + 0.5) / count_B1).to(torch.get_default_dtype())


class RankedHeads(nn.Module):
    """Keeps the heads of one attention that an order puts first; the same for every instance.

    Args:
        heads: H.
    """

    rank_H: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("rank_H", (torch.arange(heads) + 0.5) / heads)
        self.share = 1.0

    def forward(self, seen_BD: Tensor) -> Tensor:
        """(B, width) -> (B, H); a head stays where its score is >= 0."""
        return (self.share - self.rank_H).expand(len(seen_BD), -1)

    def count(self, share: float) -> int:
        """How many heads stay; ranks lie between 0 and 1, so none or all wherever there is no memory for the order."""
        if not 0 < share < 1:
            return len(self.rank_H) if share >= 1 else 0
        return int((share - self.rank_H >= 0).sum())
