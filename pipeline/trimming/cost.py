"""What a trimmed forward costs, and the kept shares that reach a wanted cost.

B batch, n tokens beside CLS, H heads. Costs are multiply-accumulates of one instance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.measure.flops import StepCounts, joining_macs, linear_macs, patch_macs, schedule_macs
from pipeline.models.backbone import Backbone
from pipeline.models.schedule import Advance, Step, site
from pipeline.trimming.smarttrim import Decision, group_of
from pipeline.trimming.trimmers import StepTrimmers, Trimmers, block_size

GROUPS = ("vision", "text", "msa", "mca")


@dataclass(frozen=True)
class Units:
    """What is there before anything is trimmed: tokens beside CLS, by group, (B,) each."""

    vision: Tensor
    text: Tensor

    def of(self, group: str) -> Tensor:
        """Tokens of a group."""
        return self.vision if group == "vision" else self.text


def units_of(model: Backbone, token_mask_BL: Tensor) -> Units:
    """Units of a batch: the patches of the model's input and each text's own tokens."""
    text_B = token_mask_BL.sum(1) - 1
    return Units(torch.full_like(text_B, model.config.vision.patches), text_B)


def kept_by_instance(decisions: Mapping[str, Decision], units: Units) -> dict[str, Tensor]:
    """(B,) for each group: mean over its layers of kept over present-at-first units."""
    shares: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for decision in decisions.values():
        shares[decision.group].append(decision.tokens_B / units.of(decision.group).clamp(min=1))
        for group, heads_BH in (("msa", decision.self_BH), ("mca", decision.cross_BH)):
            if heads_BH is not None:
                shares[group].append(heads_BH.mean(1))
    return {group: torch.stack(values).mean(0) for group, values in shares.items() if values}


def kept_shares(decisions: Mapping[str, Decision], units: Units) -> dict[str, Tensor]:
    """β of each group: mean over its layers and the batch of kept over present-at-first units."""
    return {group: shares_B.mean() for group, shares_B in kept_by_instance(decisions, units).items()}


def cost_loss(shares: Mapping[str, Tensor], wanted: Mapping[str, float]) -> Tensor:
    """L_cost: mean over groups of (β - γ)², the paper's eq. 8."""
    return torch.stack([(share - wanted[group]) ** 2 for group, share in shares.items()]).mean()


class CostModel:
    """MACs of a statement's way through a backbone, its head and its trimmers.

    Args:
        model: The backbone.
        head: The task head.
        trimmers: None for the untrimmed model.
    """

    def __init__(self, model: Backbone, head: nn.Module, trimmers: Trimmers | None) -> None:
        self.model = model
        self.steps = model.schedule
        self.trimmers = trimmers
        self.fixed = patch_macs(model.config.vision) + linear_macs(head)

    def full(self, units: Units) -> Tensor:
        """(B,) MACs with nothing trimmed and no trimmers."""
        return self._layers(self._uniform(units, 1.0))

    def at_share(self, units: Units, share: float) -> Tensor:
        """(B,) MACs where every layer keeps the same share of tokens and heads, trimmers included."""
        counts = self._uniform(units, share)
        return self._layers(counts) + self._own(counts, units)

    def of(self, decisions: Mapping[str, Decision], units: Units) -> Tensor:
        """(B,) MACs of given decisions on instances with these units, trimmers included.

        A trimmed head counts as not computed at all, as packed execution has it.
        """
        counts = self._decided(decisions)
        return self._layers(counts) + self._own(counts, units)

    def own(self, decisions: Mapping[str, Decision], units: Units) -> Tensor:
        """(B,) MACs of the trimmers alone."""
        return self._own(self._decided(decisions), units)

    def _layers(self, counts: Mapping[str, StepCounts]) -> Tensor:
        """(B,) MACs of everything but the trimmers, with these tokens and heads."""
        text, image = (steps[-1] for steps in (self.model.text_steps, self.model.visual_encoder.steps))
        left = [counts[site(step, step.advances[0])].tokens for step in (text, image)]
        return self.fixed + schedule_macs(self.steps, counts) + joining_macs(self.model, *left)

    def _sites(self) -> list[tuple[Step, Advance, str]]:
        return [(step, advance, site(step, advance)) for step in self.steps for advance in step.advances]

    def _uniform(self, units: Units, share: float) -> dict[str, StepCounts]:
        counts = {}
        for _, advance, name in self._sites():
            tokens = 1 + share * units.of(group_of(advance.stream))
            none = torch.zeros_like(tokens)
            source = sum((1 + share * units.of(group_of(other)) for other in advance.sources), none)
            heads = torch.full_like(tokens, share * block_size(advance)[1])
            counts[name] = StepCounts(tokens, source, heads, heads)
        return counts

    def _decided(self, decisions: Mapping[str, Decision]) -> dict[str, StepCounts]:
        counts: dict[str, StepCounts] = {}
        last: dict[str, Tensor] = {}
        for step, advance, name in self._sites():
            # Streams that advance together have all decided before any of them attends to another.
            last |= {a.stream: 1.0 + decisions[site(step, a)].tokens_B.detach() for a in step.advances}
            decision, tokens = decisions[name], last[advance.stream]
            none = torch.zeros_like(tokens)
            counts[name] = StepCounts(
                tokens,
                sum((last[source] for source in advance.sources), none),
                none if decision.self_BH is None else decision.self_BH.detach().sum(1),
                none if decision.cross_BH is None else decision.cross_BH.detach().sum(1),
            )
        return counts

    def _own(self, counts: Mapping[str, StepCounts], units: Units) -> Tensor:
        """(B,) MACs of the trimmers: token scores on the tokens that enter a step, the rest once an instance."""
        total = torch.zeros_like(next(iter(counts.values())).tokens)
        if self.trimmers is None:
            return total
        entering: dict[str, Tensor] = {}
        for step, advance, name in self._sites():
            part = self.trimmers[name]
            assert isinstance(part, StepTrimmers)
            if self.model.fuses_from_words and step.part == "fusion" and step.layer == 0:
                entering.pop(advance.stream, None)
            tokens = entering.get(advance.stream, 1.0 + units.of(group_of(advance.stream)))
            inner = part.tokens.key.in_features
            per_token = linear_macs(part.tokens.down) + linear_macs(part.tokens.local) + inner
            once = linear_macs(part.tokens.ask) + inner**2 + linear_macs(part.self_heads)
            if part.cross_heads is not None:
                once += linear_macs(part.cross_heads)
            total = total + tokens * per_token + once
            entering[advance.stream] = counts[name].tokens
        return total


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
            f"a target of {speed_up:g}x cannot be reached: with every token and head trimmed this model still "
            f"costs {cheapest / full:.0%} of its MACs; the highest target is {full / cheapest:.2f}x"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if float(cost.at_share(units, middle).mean()) * speed_up > full else (middle, high)
    return low
