"""SmartTrim as interventions: masked (training) and packed (inference) execution of the same decisions.

B batch, N tokens, T packed tokens, D width, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pipeline.models.packing import keep_packed, pack
from pipeline.models.schedule import InBlock, Step, Streams, TokenStream, site
from pipeline.precision import at_least_float32
from pipeline.trimming.fixed import RandomTokens, RankedHeads
from pipeline.trimming.trimmers import HeadTrimmer, StepTrimmers, Trimmers

NO_RANKS: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Decision:
    """What was decided for one stream at one step.

    Attributes:
        group: ``vision`` or ``text``: which kept share its tokens count for.
        tokens_B: Kept tokens of each instance beside CLS; differentiable where masks are.
        self_BH: Kept self-attention heads, 1 or 0; None where heads are not trimmed.
        cross_BH: Likewise of the cross-attention; None where there is none.
        entering_B: Tokens beside CLS that still attend, where some go between attention and MLP; None elsewhere.
        origin: Where the kept tokens came from, (B, N) with `present_BN` or packed.
        present_BN: Which tokens are there, padded execution only.
        offsets: Starts of the instances, packed execution only.
    """

    group: str
    tokens_B: Tensor
    self_BH: Tensor | None
    cross_BH: Tensor | None
    entering_B: Tensor | None = None
    origin: Tensor | None = None
    present_BN: Tensor | None = None
    offsets: tuple[int, ...] | None = None


class Gate(Protocol):
    """Turns scores into 0/1 masks."""

    def __call__(self, scores: Tensor) -> Tensor:
        """Same shape, 1 where a unit stays."""
        ...


def threshold(scores: Tensor) -> Tensor:
    """1 where sigmoid(score) >= 0.5; in float32 at least, so that masks can be counted exactly."""
    return at_least_float32((scores >= 0).to(scores.dtype))


@dataclass(frozen=True)
class GumbelGate:
    """Straight-through sample: hard 0/1 forward, soft gradient (binary Gumbel, the paper's eq. 6).

    Attributes:
        noise: s; 1 is the paper's, 0 is the threshold with a gradient.
        temperature: τ.
        shift: Added to every score.
    """

    noise: float
    temperature: float
    shift: float = 0.0

    def __call__(self, scores: Tensor) -> Tensor:
        """Sample from torch's random state, in float32 at least: 16 bits have no tails to draw from."""
        scores = at_least_float32(scores) + self.shift
        if self.noise:
            uniform = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
            # The difference of two Gumbel variables is logistic.
            scores = scores + self.noise * (uniform.log() - (1 - uniform).log())
        soft = torch.sigmoid(scores / self.temperature)
        # In this order the value is exactly 0 or 1: a difference of equals is 0.
        return threshold(scores) + (soft - soft.detach())


class MaskedTrimming:
    """Trimmed tokens stay in place but are attended to by nobody; trimmed heads give zero.

    Args:
        trimmers: All trimmers of the backbone.
        gate: `threshold`, or a `GumbelGate` in training.
        ranks: What is drawn for the batch (`Trimmers.ranks`), for trimmers that draw.
    """

    def __init__(self, trimmers: Trimmers, gate: Gate = threshold, ranks: Mapping[str, Tensor] = NO_RANKS) -> None:
        self.trimmers = trimmers
        self.gate = gate
        self.ranks = ranks
        self.decisions: dict[str, Decision] = {}

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Decide for every stream that advances, all from the values before the step."""
        changed, masks = {}, {}
        for advance in step.advances:
            trimmers, stream = self.trimmers.part(site(step, advance)), streams[advance.stream]
            seen, guide_BD = self.trimmers.seen(stream), self.trimmers.seen_cls(streams[advance.guide])
            heads = score_heads(trimmers, self.gate, seen.cls, guide_BD)
            scores_BN = score_tokens(trimmers, seen, guide_BD, self.ranks.get(advance.stream))
            gate = self.gate if "vision" in self.trimmers.learned else threshold
            present_BN = _there(stream) if scores_BN is None else self._keep(stream, gate(scores_BN))
            masks[advance.stream] = heads
            changed[advance.stream] = stream if scores_BN is None else replace(stream, present=present_BN)
            self.decisions[site(step, advance)] = Decision(
                group_of(advance.stream),
                present_BN[:, 1:].sum(1),
                heads.self_BH,
                heads.cross_BH,
                None,
                stream.origin,
                present_BN.detach(),
            )
        return {**streams, **changed}, masks

    @staticmethod
    def _keep(stream: TokenStream, kept_BN: Tensor) -> Tensor:
        """Once trimmed stays trimmed; CLS never is; padding was never there."""
        kept_BN = torch.cat([torch.ones_like(kept_BN[:, :1]), kept_BN[:, 1:]], 1)
        return kept_BN if stream.present is None else stream.present.to(kept_BN.dtype) * kept_BN


class PackedTrimming:
    """Trimmed tokens are taken out; the attention of trimmed heads is skipped. For inference, on packed streams.

    Args:
        trimmers: All trimmers of the backbone.
        ranks: What is drawn for the batch (`Trimmers.ranks`), for trimmers that draw.
    """

    def __init__(self, trimmers: Trimmers, ranks: Mapping[str, Tensor] = NO_RANKS) -> None:
        self.trimmers = trimmers
        self.ranks = ranks
        self.decisions: dict[str, Decision] = {}

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Decide for every stream that advances and gather what stays."""
        changed, masks = {}, {}
        for advance in step.advances:
            trimmers, stream = self.trimmers.part(site(step, advance)), pack(streams[advance.stream])
            seen, guide_BD = self.trimmers.seen(stream), self.trimmers.seen_cls(streams[advance.guide])
            heads = score_heads(trimmers, threshold, seen.cls, guide_BD)
            scores_T = score_tokens(trimmers, seen, guide_BD, self.ranks.get(advance.stream))
            kept = stream if scores_T is None else keep_packed(stream, scores_T >= 0)
            masks[advance.stream], changed[advance.stream] = heads, kept
            assert kept.offsets is not None
            left_B = torch.tensor(kept.offsets, device=kept.x.device).diff() - 1
            self.decisions[site(step, advance)] = Decision(
                group_of(advance.stream), left_B, heads.self_BH, heads.cross_BH, None, kept.origin, None, kept.offsets
            )
        return {**streams, **changed}, masks


def score_tokens(trimmers: StepTrimmers, seen: TokenStream, guide_BD: Tensor, ranks_BN: Tensor | None) -> Tensor | None:
    """Scores of the tokens, or None where all stay."""
    if trimmers.tokens is None:
        return None
    if isinstance(trimmers.tokens, RandomTokens):
        assert ranks_BN is not None, "trimmers that draw are given the draw with the batch"
        drawn: Tensor = trimmers.tokens(seen, ranks_BN)
        return drawn
    scores: Tensor = trimmers.tokens(seen, seen.cls, guide_BD)
    return scores


def score_heads(trimmers: StepTrimmers, gate: Gate, cls_BD: Tensor, guide_BD: Tensor) -> InBlock:
    """MSA heads from the stream's CLS; MCA heads from both CLS."""
    own_BH = _heads(trimmers.self_heads, gate, cls_BD)
    if trimmers.cross_heads is None:
        return InBlock(own_BH)
    return InBlock(own_BH, _heads(trimmers.cross_heads, gate, torch.cat([cls_BD, guide_BD], -1)))


def _heads(heads: HeadTrimmer | RankedHeads | None, gate: Gate, seen_BD: Tensor) -> Tensor | None:
    """(B, H) which heads work; None for all."""
    if heads is None:
        return None
    return (gate if isinstance(heads, HeadTrimmer) else threshold)(heads(seen_BD))


def _there(stream: TokenStream) -> Tensor:
    """(B, N) 1 where a token is."""
    if stream.present is None:
        return stream.x.new_ones(stream.x.shape[:2])
    return at_least_float32(stream.present.to(stream.x.dtype))


def group_of(stream: str) -> str:
    """Which kept share a stream's tokens count for: vision or text."""
    return "vision" if stream == "image" else "text"
