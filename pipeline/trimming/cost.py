"""What a trimmed forward costs, and the kept shares that reach a wanted cost.

B batch, n tokens beside CLS, H heads. Costs are multiply-accumulates of one instance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.measure.flops import Kept, StepCounts, Telling, block_macs, joining_macs, linear_macs, patch_macs
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Advance, Step, site
from pipeline.trimming.kept_pruning import KeptPruning
from pipeline.trimming.smarttrim import Decision
from pipeline.trimming.trimmers import SMARTTRIM, TokenTrimmer, Trimmers, block_size, group_of
from pipeline.trimming.vision_only import ReducedVision

GROUPS = SMARTTRIM.groups


class Place(NamedTuple):
    """Where units are kept or not.

    Attributes:
        part: Of the backbone.
        layer: Of the part, from 0.
        stream: That advances there.
        group: Of its units, one of `GROUPS`.
    """

    part: str
    layer: int
    stream: str
    group: str


@dataclass(frozen=True)
class Units:
    """What an instance begins with: tokens beside CLS, by group, (B,) each."""

    vision: Tensor
    text: Tensor

    def of(self, group: str) -> Tensor:
        """Tokens of a group."""
        return self.vision if group == "vision" else self.text


def units_of(model: Backbone, token_mask_BL: Tensor) -> Units:
    """Units of a batch: the patches of the model's input and each text's own tokens."""
    text_B = token_mask_BL.sum(1) - 1
    return Units(torch.full_like(text_B, model.config.vision.patches), text_B)


def cost_loss(shares: Mapping[str, Tensor], wanted: Mapping[str, float]) -> Tensor:
    """L_cost: mean over groups of (β - γ)², the paper's eq. 8."""
    return torch.stack([(share - wanted[group]) ** 2 for group, share in shares.items()]).mean()


class CostModel:
    """MACs of a statement's way through a backbone, its head and its trimmers.

    What a pair goes through twice, once for each picture, has 2 B rows of decisions: first all left ones.

    Where fusion begins from the words (BLIP) the text is encoded alone only for those who look at it: trimmers
    with a global score, TRIPS, pruning, or contrast. The untrimmed model has none of these and is counted without.
    What only guides is counted whole, and is no unit of the kept shares.

    Args:
        model: The backbone.
        head: The task head.
        trimmers: What trims; None for the untrimmed model.
        pruning: That the backbone keeps while it is fine-tuned; it is part of the untrimmed model.
        speech: What a model's decoder does, where it has one.
        contrast: Whether the encoded text is compared with pictures, as in retrieval.
    """

    def __init__(
        self,
        model: Backbone,
        head: nn.Module,
        trimmers: Trimmers | ReducedVision | None,
        pruning: KeptPruning | None = None,
        speech: Telling | None = None,
        contrast: bool = False,
    ) -> None:
        self.model = model
        together = isinstance(trimmers, Trimmers) and trimmers.together
        asked = pruning is not None or contrast
        self.full_steps = model.schedule_for(together, asked)
        self.steps = model.schedule_for(together, asked or (trimmers is not None and trimmers.looks_at_text))
        self.trimmers = trimmers
        self.pruning = pruning
        self.speech = speech
        self.head = linear_macs(head)
        self.pictures = 1 if model.pair is None else 2
        self.fixed = self.pictures * patch_macs(model.config.vision) + self.head

    def full(self, units: Units) -> Tensor:
        """(B,) MACs with nothing trimmed and no trimmers."""
        return self._layers(self._full_counts(units), units, self.full_steps)

    def at_share(self, units: Units, share: float) -> Tensor:
        """(B,) MACs where every layer keeps the same share of what is trimmed, trimmers included.

        Methods that keep fixed numbers keep those that belong to the share.
        """
        assert self.trimmers is not None, "a full model keeps everything"
        kept = {
            name: self.trimmers.kept_at(step, advance, 1.0 * self._there(step, advance, units), share)
            for step, advance, name in _sites(self.steps)
        }
        return self._layers(self._counts(kept, units, self.steps), units, self.steps) + self._own(kept, units, share)

    def of(self, decisions: Mapping[str, Decision], units: Units) -> Tensor:
        """(B,) MACs of given decisions on instances with these units, trimmers included.

        A trimmed head counts as not computed at all, as packed execution has it.
        """
        kept = self._kept(decisions, units)
        return self._layers(self._counts(kept, units, self.steps), units, self.steps) + self._own(kept, units)

    def own(self, decisions: Mapping[str, Decision], units: Units) -> Tensor:
        """(B,) MACs of the trimmers alone."""
        return self._own(self._kept(decisions, units), units)

    def by_module(self, decisions: Mapping[str, Decision], units: Units) -> dict[str, float]:
        """Sums over instances of what `of` gives, by module: the backbone's parts, ``head`` and ``trimmers``."""
        counts, own = (
            self._counts(self._kept(decisions, units), units, self.steps),
            float(self.own(decisions, units).double().sum()),
        )
        return {**self._split(counts, units, self.steps, self.of(decisions, units), own), "trimmers": own}

    def full_by_module(self, units: Units) -> dict[str, float]:
        """Likewise of what `full` gives, which has no trimmers."""
        return self._split(self._full_counts(units), units, self.full_steps, self.full(units), 0.0)

    def _split(
        self, counts: Mapping[str, StepCounts], units: Units, steps: Sequence[Step], total_B: Tensor, trimmers: float
    ) -> dict[str, float]:
        """Blocks go by their part, patches and pruning to the tower, the ways into the fusion and out of it to that."""
        sites = _sites(steps)
        parts = [advance.part or step.part for step, advance, _ in sites]
        macs = torch.stack([block_macs(a, counts[name]).double().sum() for _, a, name in sites])
        sums = dict.fromkeys(("vision", "text", "fusion"), 0.0)
        for part, each in zip(parts, macs.tolist(), strict=True):
            sums[part] = sums.get(part, 0.0) + each
        sums |= {"head": float(self.head * len(total_B))}
        if self.speech is not None:
            sums["head"] += float(self.speech.words(units.text).double().sum())
        sums["vision"] += (self.fixed - self.head) * len(total_B)
        if self.pruning is not None:
            leaving = {step.layer: _leaving(counts, step) for step in self.model.visual_encoder.steps}
            sums["vision"] += float(self.pruning.macs(leaving).double().sum())
        # What is left is little, and where there is no such way it may be less than a rounding error.
        sums["fusion"] += max(0.0, float(total_B.double().sum()) - trimmers - sum(sums.values()))
        return sums

    def kept_by_place(self, decisions: Mapping[str, Decision], units: Units) -> dict[Place, Tensor]:
        """(B,) for each place: the kept units over those that are there untrimmed."""
        shares: dict[Place, Tensor] = {}
        for step, advance, name in _sites(self.steps):
            if (decision := decisions.get(name)) is None:
                continue
            at = advance.part or step.part, step.layer, advance.stream
            there = self._there(step, advance, units).clamp(min=1)
            shares[Place(*at, decision.group)] = _by_instance(decision.tokens_B / there, units).mean(0)
            for group, heads_BH in (("msa", decision.self_BH), ("mca", decision.cross_BH)):
                if heads_BH is not None:
                    shares[Place(*at, group)] = _by_instance(heads_BH.mean(1), units).mean(0)
        return shares

    def kept_by_instance(self, decisions: Mapping[str, Decision], units: Units) -> dict[str, Tensor]:
        """(B,) for each group: mean over its layers of the kept units over those that are there untrimmed."""
        shares: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
        for place, share_B in self.kept_by_place(decisions, units).items():
            shares[place.group].append(share_B)
        return {group: torch.stack(values).mean(0) for group, values in shares.items() if values}

    def kept_shares(self, decisions: Mapping[str, Decision], units: Units) -> dict[str, Tensor]:
        """β of each group: mean over its layers and the batch."""
        return {group: shares_B.mean() for group, shares_B in self.kept_by_instance(decisions, units).items()}

    def _kept(self, decisions: Mapping[str, Decision], units: Units) -> dict[str, Kept]:
        """What decisions keep, and all where nobody decides."""
        kept = _decided(decisions)
        if isinstance(self.trimmers, Trimmers):
            for step, advance, name in _sites(self.steps):
                if name not in self.trimmers:
                    kept[name] = Kept(1.0 + self._there(step, advance, units))
        return kept

    def _there(self, step: Step, advance: Advance, units: Units, whole: bool = False) -> Tensor:
        """(B,) tokens beside CLS at a step where nothing is trimmed; (2 B,) where a pair goes through it twice."""
        there_B = units.of(group_of(advance.trimmed))
        if self.pruning is not None and advance.stream == "image":
            there_B = torch.full_like(units.vision, self.pruning.left(step))
        return there_B.repeat(self._times(step, advance, whole))

    def _times(self, step: Step, advance: Advance, whole: bool) -> int:
        """How often an instance goes through a block; `whole` for the untrimmed model, whose text is encoded once."""
        if self.model.pair is None:
            return 1
        if (advance.part or step.part) == "text":  # with each picture only where its trimmers look at that
            return 2 if step.part != "text" and not whole else 1
        return 2 if advance.stream == "image" or self.model.pair == "passes" else 1

    def _full_counts(self, units: Units) -> dict[str, StepCounts]:
        """Of everything."""
        sites = _sites(self.full_steps)
        kept = {name: Kept(1.0 + self._there(step, advance, units, whole=True)) for step, advance, name in sites}
        return self._counts(kept, units, self.full_steps)

    def _layers(self, counts: Mapping[str, StepCounts], units: Units, steps: Sequence[Step]) -> Tensor:
        """(B,) MACs of everything but the trimmers, with these tokens and heads."""
        vision = self.model.visual_encoder.steps
        blocks = [block_macs(advance, counts[name]) for _, advance, name in _sites(steps)]
        macs = self.fixed + torch.stack([_by_instance(each, units).sum(0) for each in blocks]).sum(0)
        if self.model.text_steps and not self.model.fuses_from_words:
            text, image = (_leaving(counts, step) for step in (self.model.text_steps[-1], vision[-1]))
            joining = joining_macs(self.model, text.repeat(len(image) // len(text)), image)
            macs = macs + _by_instance(joining, units).sum(0)
        if self.speech is not None:
            macs = macs + self.speech.words(units.text)
        if self.pruning is None:
            return macs
        pruned = self.pruning.macs({step.layer: _leaving(counts, step) for step in vision})
        return macs + _by_instance(pruned, units).sum(0)

    def _counts(self, kept: Mapping[str, Kept], units: Units, steps: Sequence[Step]) -> dict[str, StepCounts]:
        counts: dict[str, StepCounts] = {}
        last: dict[str, Tensor] = {}
        for step, advance, name in _sites(steps):
            # Streams that advance together have all decided before any of them attends to another.
            last |= {a.trimmed: kept[site(step, a)].left for a in step.advances}
            if self.model.pair == "both" and step.part == "fusion":
                last["image"], last["other"] = kept[site(*_last_vision(self.model))].left.chunk(2)
            own = kept[name]
            every = torch.full_like(own.tokens, block_size(advance)[1])
            told = self._told(units) if advance.tells_of else (own.tokens, None)
            counts[name] = StepCounts(
                told[0],
                sum((last[source] for source in advance.sources), torch.zeros_like(own.tokens)),
                every if own.self_heads is None else own.self_heads,
                every if own.cross_heads is None else own.cross_heads,
                own.mlp,
                told[1],
            )
        return counts

    def _told(self, units: Units) -> tuple[Tensor, Tensor]:
        """(B,) tokens that go through a decoder's layers, and what they attend to of each other."""
        assert self.speech is not None, "a model with a decoder says what it does"
        return self.speech.tokens(units.text), self.speech.pairs(units.text)

    def _own(
        self, kept: Mapping[str, Kept], units: Units, share: float | None = None, steps: Sequence[Step] | None = None
    ) -> Tensor:
        """(B,) MACs of what decides in `steps`, all where None: token scores on what enters a step, the rest once."""
        total = next(iter(kept.values())).tokens.new_zeros(len(units.text))
        if isinstance(self.trimmers, ReducedVision):
            return total + self.pictures * self.trimmers.own_macs(share)
        if self.trimmers is None:
            return total
        entering: dict[str, Tensor] = {}
        for step, advance, name in _sites(self.steps if steps is None else steps):
            if name not in self.trimmers:
                continue
            part = self.trimmers.part(name)
            if self.model.fuses_from_words and step.part == "fusion" and step.layer == 0:
                entering.pop(advance.stream, None)
            tokens = 1.0 + self._there(step, advance, units)
            if advance.tells_of and advance.trimmed not in entering:  # a question, read under another name
                entering[advance.trimmed] = entering[advance.stream]
            if advance.trimmed in entering:  # pruning may take some of them out before they are scored
                before = entering[advance.trimmed]
                tokens = torch.minimum(tokens, before.repeat(len(tokens) // len(before)))
            once = sum(linear_macs(heads) for heads in (part.self_heads, part.cross_heads) if heads is not None)
            if isinstance(part.tokens, TokenTrimmer):
                per_token, asked = _token_macs(part.tokens)
                total, once = total + _by_instance(tokens * per_token, units).sum(0), once + asked
            total = total + len(tokens) // len(total) * once
            entering[advance.trimmed] = kept[name].tokens
        return total


def _sites(steps: Sequence[Step]) -> list[tuple[Step, Advance, str]]:
    return [(step, advance, site(step, advance)) for step in steps for advance in step.advances]


def _by_instance(values: Tensor, units: Units) -> Tensor:
    """(1, B), or (2, B) of what a pair goes through twice."""
    return values.reshape(-1, len(units.text))


def _last_vision(model: Backbone) -> tuple[Step, Advance]:
    step = model.visual_encoder.steps[-1]
    return step, step.advances[0]


def _leaving(counts: Mapping[str, StepCounts], step: Step) -> Tensor:
    """(B,) tokens with CLS that leave a step of one stream."""
    own = counts[site(step, step.advances[0])]
    return own.tokens if own.mlp is None else own.mlp


def _token_macs(trimmer: TokenTrimmer) -> tuple[int, int]:
    """MACs for each token, and once an instance."""
    local = linear_macs(trimmer.down) + linear_macs(trimmer.local)
    if trimmer.ask is None:
        return local, 0
    return local + trimmer.inner, linear_macs(trimmer.ask) + trimmer.inner**2


def _decided(decisions: Mapping[str, Decision]) -> dict[str, Kept]:
    """What decisions keep."""
    kept = {}
    for name, decision in decisions.items():
        left = 1.0 + decision.tokens_B.detach()
        heads = [None if each is None else each.detach().sum(1) for each in (decision.self_BH, decision.cross_BH)]
        if decision.entering_B is None:
            kept[name] = Kept(left, None, *heads)
        else:
            kept[name] = Kept(1.0 + decision.entering_B, left, *heads)
    return kept


def solve_share(cost: CostModel, units: Units, speed_up: float) -> float:
    """The share of tokens and heads, the same in all groups, at which the mean cost is full / `speed_up`.

    Args:
        cost: Cost model with trimmers.
        units: A typical batch.
        speed_up: Wanted ratio of MACs, above 1.

    Returns:
        γ in (0, 1).

    Raises:
        UserError: Even keeping nothing but CLS is dearer; the message names the highest reachable ratio.
    """
    full = float(cost.full(units).mean())
    cheapest = float(cost.at_share(units, 0.0).mean())
    if full / speed_up < cheapest:
        raise UserError(
            f"a target of {speed_up:g}x cannot be reached: with all trimmed that this method trims the model still "
            f"costs {cheapest / full:.0%} of its MACs; the highest target is {full / cheapest:.2f}x"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if float(cost.at_share(units, middle).mean()) * speed_up > full else (middle, high)
    # Whole tokens and heads make steps, so either side of one may be nearer.
    return min(low, high, key=lambda share: abs(float(cost.at_share(units, share).mean()) - full / speed_up))
