"""SmartTrim as interventions: masked (training) and packed (inference) execution of the same decisions.

B batch, N tokens, T packed tokens, D width, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.models.packing import keep_packed, pack
from pipeline.models.schedule import Advance, InBlock, Step, Streams, TokenStream, site
from pipeline.precision import at_least_float32
from pipeline.trimming.fixed import RandomTokens, RankedHeads
from pipeline.trimming.trimmers import HeadTrimmer, StepTrimmers, Trimmers, group_of

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

    def __call__(self, scores: Tensor, group: str) -> Tensor:
        """Same shape, 1 where a unit of the group stays."""
        ...


def threshold(scores: Tensor, group: str = "") -> Tensor:
    """1 where sigmoid(score) >= 0.5, whatever the group; in float32 at least, so that masks can be counted exactly."""
    return at_least_float32((scores >= 0).to(scores.dtype))


@dataclass(frozen=True)
class GumbelGate:
    """Straight-through sample: hard 0/1 forward, soft gradient (binary Gumbel, the paper's eq. 6).

    Attributes:
        noise: s; 1 is the paper's, 0 is the threshold with a gradient.
        temperature: τ.
        shifts: Added to every score of a group.
    """

    noise: float
    temperature: float
    shifts: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, scores: Tensor, group: str = "") -> Tensor:
        """Sample from torch's random state, in float32 at least: 16 bits have no tails to draw from."""
        scores = at_least_float32(scores) + self.shifts.get(group, 0.0)
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
        self._settled: dict[str, tuple[InBlock, Tensor | None]] = {}
        self.looks_at_text = trimmers.looks_at_text

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Decide for every stream that advances, all from the values before the step."""
        changed, masks = {}, {}
        for advance in step.advances:
            name, stream = site(step, advance), streams[advance.trimmed]
            if name not in self.trimmers:  # a text that only guides
                continue
            heads, present_BN = self._settled.get(name) or self._decide(name, advance, streams)
            masks[advance.stream] = for_rows(heads, stream)
            changed[advance.trimmed] = stream if present_BN is None else replace(stream, present=present_BN)
        return {**streams, **changed}, masks

    def _decide(self, name: str, advance: Advance, streams: Streams) -> tuple[InBlock, Tensor | None]:
        """Which heads work at a site, and which tokens are left there; None where all stay."""
        trimmers, stream = self.trimmers.part(name), streams[advance.trimmed]
        sight = look(self.trimmers, advance, streams)
        heads = score_heads(trimmers, self.gate, sight)
        scores_BN = score_tokens(trimmers, sight, self.ranks.get(advance.trimmed))
        group = group_of(advance.trimmed)
        gate = self.gate if group in self.trimmers.learned else threshold
        kept_BN = None if scores_BN is None else self._keep(stream, gate(scores_BN, group))
        present_BN = _there(stream) if kept_BN is None else kept_BN
        self.decisions[name] = Decision(
            group,
            present_BN[:, 1:].sum(1),
            heads.self_BH,
            heads.cross_BH,
            None,
            stream.origin,
            present_BN.detach(),
        )
        if advance.tells_of:
            self._settled[name] = heads, kept_BN
        return heads, kept_BN

    @staticmethod
    def _keep(stream: TokenStream, kept_BN: Tensor) -> Tensor:
        """Once trimmed stays trimmed; CLS never is; padding was never there."""
        kept_BN = torch.cat([torch.ones_like(kept_BN[:, :1]), kept_BN[:, 1:]], 1)
        return kept_BN if stream.present is None else stream.present.to(kept_BN.dtype) * kept_BN


class PackedTrimming:
    """Trimmed tokens are taken out; the attention of trimmed heads is skipped. For inference, on packed streams.

    What a decoder reads is decided once, in its first pass, and holds for all texts, words and beams after it: [DEC]
    sees nothing but itself and the source, so that every pass would decide the same.

    Args:
        trimmers: All trimmers of the backbone.
        ranks: What is drawn for the batch (`Trimmers.ranks`), for trimmers that draw.
    """

    def __init__(self, trimmers: Trimmers, ranks: Mapping[str, Tensor] = NO_RANKS) -> None:
        self.trimmers = trimmers
        self.ranks = ranks
        self.decisions: dict[str, Decision] = {}
        self._settled: dict[str, tuple[InBlock, TokenStream]] = {}
        self.looks_at_text = trimmers.looks_at_text

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Decide for every stream that advances and gather what stays."""
        changed: dict[str, TokenStream] = {}
        masks: dict[str, InBlock] = {}
        for advance in step.advances:
            packed, trimmed = {advance.stream: pack(streams[advance.stream])}, streams[advance.trimmed]
            name = site(step, advance)
            if name not in self.trimmers:  # a text that only guides
                changed |= packed
                continue
            if name in self._settled:
                heads, kept = self._settled[name]
            else:
                heads, kept = self._decide(name, advance, {**streams, **packed})
            masks[advance.stream] = for_rows(heads, trimmed)
            changed |= packed | {advance.trimmed: replace(kept, rows=trimmed.rows, queries=trimmed.queries)}
        return {**streams, **changed}, masks

    def _decide(self, name: str, advance: Advance, streams: Streams) -> tuple[InBlock, TokenStream]:
        """Which heads work at a site, and what stays of the stream that is trimmed there."""
        trimmers, stream = self.trimmers.part(name), pack(streams[advance.trimmed])
        sight = look(self.trimmers, advance, {**streams, advance.trimmed: stream})
        heads = score_heads(trimmers, threshold, sight)
        scores_T = score_tokens(trimmers, sight, self.ranks.get(advance.trimmed))
        kept = stream if scores_T is None else keep_packed(stream, scores_T >= 0)
        assert kept.offsets is not None
        left_B = torch.tensor([end - begin - 1 for begin, end in pairwise(kept.offsets)], device=kept.x.device)
        self.decisions[name] = Decision(
            group_of(advance.trimmed), left_B, heads.self_BH, heads.cross_BH, None, kept.origin, None, kept.offsets
        )
        if advance.tells_of:
            kept = replace(kept, memo={})  # the keys and values of this layer are made once
            self._settled[name] = heads, kept
        return heads, kept


class Sight(NamedTuple):
    """What the trimmers of a site look at, through `Trimmers.seen`.

    Attributes:
        tokens: Of the stream that is trimmed.
        own_BD: CLS of the stream that advances.
        other_BD: CLS of the stream that guides it; None where that has not been encoded, for no score asks for it.
        asked_BD: CLS that speaks for the modality that the tokens are not of; likewise.
    """

    tokens: TokenStream
    own_BD: Tensor
    other_BD: Tensor | None
    asked_BD: Tensor | None


def look(trimmers: Trimmers, advance: Advance, streams: Streams) -> Sight:
    """What there is to see where a stream advances; of rows that share what they are told of, the first one's CLS."""
    trimmed = streams[advance.trimmed]
    tokens = trimmers.seen(trimmed)
    if not advance.tells_of:
        guide = streams.get(advance.guide)  # no BLIP text alone where `Trimmers.looks_at_text` says no
        guide_BD = None if guide is None else trimmers.seen_cls(guide)
        if guide_BD is not None and guide is not None and guide.rows is not None:  # several texts share an image
            guide_BD = guide_BD[guide.rows]
        return Sight(tokens, tokens.cls, guide_BD, guide_BD)
    own_BD = trimmers.seen_cls(streams[advance.stream])
    if trimmed.rows is None:
        own_BD = own_BD[:: trimmed.queries]
    else:
        every_B = torch.arange(len(tokens.cls), device=own_BD.device)
        own_BD = own_BD[torch.searchsorted(trimmed.rows, every_B)]
    return Sight(tokens, own_BD, tokens.cls, own_BD)


def for_rows(heads: InBlock, shared: TokenStream) -> InBlock:
    """Decisions of each instance for each of the rows that are told of it."""
    if shared.rows is None and shared.queries == 1:
        return heads
    return InBlock(_for_rows(heads.self_BH, shared), _for_rows(heads.cross_BH, shared))


def _for_rows(mask_BH: Tensor | None, shared: TokenStream) -> Tensor | None:
    if mask_BH is None:
        return None
    return mask_BH.repeat_interleave(shared.queries, 0) if shared.rows is None else mask_BH[shared.rows]


def score_tokens(trimmers: StepTrimmers, sight: Sight, ranks_BN: Tensor | None) -> Tensor | None:
    """Scores of the tokens, or None where all stay."""
    if trimmers.tokens is None:
        return None
    if isinstance(trimmers.tokens, RandomTokens):
        assert ranks_BN is not None, "trimmers that draw are given the draw with the batch"
        drawn: Tensor = trimmers.tokens(sight.tokens, ranks_BN)
        return drawn
    scores: Tensor = trimmers.tokens(sight.tokens, sight.tokens.cls, sight.asked_BD)
    return scores


def score_heads(trimmers: StepTrimmers, gate: Gate, sight: Sight) -> InBlock:
    """MSA heads from the stream's CLS; MCA heads from both CLS."""
    own_BH = _heads(trimmers.self_heads, gate, sight.own_BD, "msa")
    if trimmers.cross_heads is None:
        return InBlock(own_BH)
    assert sight.other_BD is not None, "what is attended to is there"
    return InBlock(own_BH, _heads(trimmers.cross_heads, gate, torch.cat([sight.own_BD, sight.other_BD], -1), "mca"))


def _heads(heads: HeadTrimmer | RankedHeads | None, gate: Gate, seen_BD: Tensor, group: str) -> Tensor | None:
    """(B, H) which heads work; None for all."""
    if heads is None:
        return None
    return (gate if isinstance(heads, HeadTrimmer) else threshold)(heads(seen_BD), group)


def _there(stream: TokenStream) -> Tensor:
    """(B, N) 1 where a token is."""
    if stream.present is None:
        return stream.x.new_ones(stream.x.shape[:2])
    return at_least_float32(stream.present.to(stream.x.dtype))
