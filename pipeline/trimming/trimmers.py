"""SmartTrim's trimmers (arXiv 2305.15033, section 3): small networks that score tokens and heads.

Each kind may be left out or replaced by what decides without looking (`pipeline.trimming.fixed`): its baselines.

B batch, N tokens, T packed tokens, D width, H heads, D' trimmer width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_prep.errors import UserError
from pipeline.limits import a_share, above_zero, at_least
from pipeline.measure.flops import Kept
from pipeline.models.backbone import Backbone
from pipeline.models.blocks import PostNormBlock, PreNormBlock
from pipeline.models.linear import Linear
from pipeline.models.packing import spread
from pipeline.models.schedule import Advance, Step, TokenStream, site
from pipeline.trimming.fixed import Place, RandomTokens, RankedHeads, places, random_ranks


@dataclass(frozen=True, kw_only=True)
class TrimmerConfig:
    """Size and start of the trimmers.

    Attributes:
        width_share: D' over D.
        keep_bias: Added to every score, so that training starts by keeping everything (2 to 5).
        last_std: Standard deviation of the last weights at the start; small but not zero.
        temperature: τ of the straight-through sampling.
        noise: s, the scale of the sampling noise; 1 is the paper's. Twelve layers that each drop 5% at random leave
            half of the tokens, which a short training cannot follow: it wants less.
        noise_ramp: Share of training over which the noise rises from 0.
        noise_fade: Share of training, its last, over which the noise falls back to 0, so that the last updates see the
            decisions of inference, which have none.
        teach_backbone: Whether the trimmers' scores send their gradient into the backbone, the cost's above all. A
            short training wants its backbone to follow the task alone.
    """

    width_share: float = 1 / 6
    keep_bias: float = 3.0
    last_std: float = 0.02
    temperature: float = 1.0
    noise: float = 1.0
    noise_ramp: float = 0.2
    noise_fade: float = 0.0
    teach_backbone: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.width_share <= 1:
            raise UserError(f"trimmers.width_share={self.width_share} must lie in (0, 1]")
        above_zero(self, "trimmers", "temperature", "last_std")
        a_share(self, "trimmers", "noise_ramp", "noise_fade")
        at_least(self, "trimmers", 0, "noise")

    def noise_at(self, progress: float) -> float:
        """The scale s at a share of training."""
        risen = min(1.0, progress / self.noise_ramp) if self.noise_ramp else 1.0
        left = min(1.0, (1.0 - progress) / self.noise_fade) if self.noise_fade else 1.0
        return self.noise * min(risen, left)


Group = Literal["vision", "text", "msa", "mca"]
"""Tokens of pictures and of texts, heads of self-attention and of cross-attention."""
_TOKENS: tuple[Group, ...] = ("vision", "text")
_HEADS: tuple[Group, ...] = ("msa", "mca")


def group_of(stream: str) -> Group:
    """Which kept share a stream's tokens count for."""
    return "vision" if stream == "image" else "text"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who decides which tokens and which heads stay.

    Attributes:
        tokens: ``global``: trimmers with local and global score; ``local``: trimmers without the global one;
            ``random``: as many as the share says, drawn for each instance; ``all``: every token stays.
        heads: ``trimmers``; ``ranked``: the first ones of an order that was settled before training; ``all``.
        groups: Of which anything is scored or drawn; of the others all stays.
        trims_guide: Whether tokens and heads go also of a text that is encoded for its CLS alone (BLIP's). Exports from
            before 2026-11-23 have it so; no task's loss teaches what goes there.
    """

    tokens: Literal["global", "local", "random", "all"] = "global"
    heads: Literal["trimmers", "ranked", "all"] = "trimmers"
    groups: tuple[Group, ...] = (*_TOKENS, *_HEADS)
    trims_guide: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.groups) - {*_TOKENS, *_HEADS}:
            raise ValueError(f"groups has {sorted(unknown)}, and there are {', '.join((*_TOKENS, *_HEADS))}")

    @property
    def learned(self) -> frozenset[str]:
        """Groups that trimmers decide on."""
        tokens = _TOKENS if self.tokens in ("global", "local") else ()
        return frozenset((*tokens, *(_HEADS if self.heads == "trimmers" else ()))) & frozenset(self.groups)

    @property
    def asks(self) -> bool:
        """Whether what stays of one modality depends on the other: only the global score asks it."""
        return self.tokens == "global" and not self.learned.isdisjoint(_TOKENS)


SMARTTRIM = Policy()


class Scores(nn.Sequential):
    """Linear, GELU (erf), linear: (..., K) -> (..., N).

    Args:
        width_in: K.
        hidden: Between the maps.
        width_out: N.
        last_std: Standard deviation of the last weights.
        bias: Of the last map.
    """

    def __init__(self, width_in: int, hidden: int, width_out: int, last_std: float, bias: float = 0.0) -> None:
        last = Linear(hidden, width_out)
        nn.init.normal_(last.weight, std=last_std)
        nn.init.constant_(last.bias, bias)
        first = Linear(width_in, hidden)
        super().__init__(first, nn.GELU(), last)
        self._ends = first, last

    def forward(self, x: Tensor) -> Tensor:
        """Both maps, of 70 a forward pass: what it takes to call each counts."""
        first, last = self._ends
        return last(first.then_gelu(x))

    @torch.no_grad()
    def shift(self, by: float) -> None:
        """Adds a number to every score."""
        self._ends[1].bias.add_(by)


class TokenTrimmer(nn.Module):
    """Scores each token by itself and by what the sentence or picture asks for.

    Args:
        width: D of the tokens.
        guide_width: Width of the other modality's CLS; None for the local score alone.
        config: Size and start.
    """

    def __init__(self, width: int, guide_width: int | None, config: TrimmerConfig) -> None:
        super().__init__()
        inner = max(8, round(width * config.width_share))
        self.inner = inner
        self.down = Linear(width, inner)
        self.local = Scores(inner, inner, 1, config.last_std, config.keep_bias)
        self.ask: Scores | None = None
        if guide_width is not None:
            self.ask = Scores(width + guide_width, inner, inner, config.last_std)
            self.key = Linear(inner, inner, bias=False)

    def forward(self, stream: TokenStream, cls_BD: Tensor, guide_BD: Tensor | None) -> Tensor:
        """Scores π_t = π_l + π_g of all tokens, (B, N) or packed (T,); a token stays where it is >= 0."""
        small = self.down(stream.x)
        if self.ask is None:
            alone: Tensor = self.local(small)[..., 0]
            return alone
        assert guide_BD is not None, "a global score is given the other modality's CLS"
        asked_Bd = self.ask(torch.cat([cls_BD, guide_BD], -1)) @ self.key.weight
        local: Tensor = self.local(small)[..., 0]
        if len(asked_Bd) == 1:
            return local + small @ asked_Bd[0]
        return local + (small * spread(asked_Bd, stream)).sum(-1)

    def shift(self, by: float) -> None:
        """Adds a number to every score."""
        self.local.shift(by)


class HeadTrimmer(nn.Module):
    """Scores the heads of one attention module.

    Args:
        width: Width of what it looks at: one CLS, or two side by side.
        heads: H.
        config: Size and start.
    """

    def __init__(self, width: int, heads: int, config: TrimmerConfig) -> None:
        super().__init__()
        inner = max(8, round(width * config.width_share))
        self.score = Scores(width, inner, heads, config.last_std, config.keep_bias)

    def forward(self, seen_BD: Tensor) -> Tensor:
        """(B, width) -> (B, H); a head stays where its score is >= 0."""
        scores: Tensor = self.score(seen_BD)
        return scores

    def shift(self, by: float) -> None:
        """Adds a number to every score."""
        self.score.shift(by)


class StepTrimmers(nn.Module):
    """What decides on one stream at one step: on its tokens, its self-attention's heads, its cross-attention's.

    Args:
        advance: What happens at the step.
        guide_width: Width of the guiding stream.
        config: Size and start.
        policy: Who decides; None stands where all stay.
        place: Number of the layer, for tokens that are drawn.
    """

    def __init__(self, advance: Advance, guide_width: int, config: TrimmerConfig, policy: Policy, place: Place) -> None:
        super().__init__()
        width, heads = block_size(advance)
        self.group = group_of(advance.trimmed)
        self.tokens: TokenTrimmer | RandomTokens | None = None
        trimmed = self.group in policy.groups
        if trimmed and policy.tokens == "random":
            self.tokens = RandomTokens(place)
        elif trimmed and policy.tokens != "all":
            own, asked = (guide_width, width) if advance.tells_of else (width, guide_width)
            self.tokens = TokenTrimmer(own, asked if policy.tokens == "global" else None, config)
        self.self_heads = _decider("msa", width, heads, config, policy)
        self.cross_heads = None
        if advance.sources:
            self.cross_heads = _decider("mca", width + guide_width, heads, config, policy)


def _decider(
    group: Group, width: int, heads: int, config: TrimmerConfig, policy: Policy
) -> HeadTrimmer | RankedHeads | None:
    """Who decides on the heads of one attention."""
    if policy.heads == "all" or group not in policy.groups:
        return None
    return RankedHeads(heads) if policy.heads == "ranked" else HeadTrimmer(width, heads, config)


def block_size(advance: Advance) -> tuple[int, int]:
    """Width and heads of the block that a stream goes through."""
    block = advance.block
    if isinstance(block, PreNormBlock):
        return block.norm1.normalized_shape[0], block.attn.heads
    assert isinstance(block, PostNormBlock)
    return block.output.LayerNorm.normalized_shape[0], block.attention.heads


def _guide_width(step: Step, advance: Advance, widths: dict[str, int]) -> int:
    """Width of the guiding stream: that of its own block where it advances in the same step, as METER's do."""
    beside = [other for other in step.advances if other.stream == advance.guide]
    return block_size(beside[0])[0] if beside else widths[advance.guide]


class Trimmers(nn.ModuleDict):
    """All trimmers of a backbone, by `site`.

    Attributes:
        looks_at_text: Whether the text alone has a say in what goes: heads go by what fusion has made of it, or by the
            picture.

    Args:
        backbone: Whose tokens and heads they decide on.
        config: Size and start.
        policy: SmartTrim, or one of its baselines.
        together: Whether both encoders advance side by side, so that each layer's trimmers see the other's CLS.
        asked: Whether the text alone is trimmed where fusion begins from the words once more (BLIP): retrieval's, for
            contrast compares it. One that only guides is encoded whole, for the task's loss does not reach it.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrimmerConfig,
        policy: Policy = SMARTTRIM,
        together: bool = False,
        asked: bool = False,
    ) -> None:
        # Its one use where fusion begins from the words is to guide what goes of the picture.
        self.looks_at_text = policy.asks and (not backbone.fuses_from_words or "vision" in policy.groups)
        steps = backbone.schedule_for(together, asked=asked or (policy.trims_guide and self.looks_at_text))
        at = places(backbone)
        image, text = backbone.config.vision.width, backbone.config.text.width
        widths = {"image": image, "pair": image, "text": text, "source": text}
        super().__init__(
            {
                name: StepTrimmers(advance, _guide_width(step, advance, widths), config, policy, at[name])
                for step in steps
                for advance in step.advances
                for name in [site(step, advance)]
            }
        )
        self.config = config
        self.policy = policy
        self.together = together
        self.patches = backbone.config.vision.patches
        self.share = 1.0

    @property
    def learned(self) -> frozenset[str]:
        """Groups whose kept share is learned: the cost loss asks for it, and calibration settles it."""
        return self.policy.learned

    @property
    def removes_while_training(self) -> bool:
        """Masks leave everything in place."""
        return False

    def part(self, name: str) -> StepTrimmers:
        """What decides at a site."""
        part = self[name]
        assert isinstance(part, StepTrimmers)
        return part

    def set_share(self, share: float) -> None:
        """Sets the share that stays where nothing is learned."""
        self.share = share
        for module in self.modules():
            if isinstance(module, RandomTokens | RankedHeads):
                module.share = share

    def ranked(self) -> Iterator[tuple[str, RankedHeads]]:
        """The orders of heads, by site and kind of attention."""
        for name in self:
            part = self.part(name)
            for kind, heads in (("self", part.self_heads), ("cross", part.cross_heads)):
                if isinstance(heads, RankedHeads):
                    yield f"{name}/{kind}", heads

    def ranks(self, ids_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """What is drawn for a batch; empty where no tokens are drawn."""
        if self.policy.tokens != "random":
            return {}
        return random_ranks(ids_BL, mask_BL, self.patches, fresh=self.training)

    def kept_at(self, step: Step, advance: Advance, there_B: Tensor, share: float) -> Kept:
        """What stays where the share is as given: for learned scores the mean, else what will be.

        Args:
            step: Where.
            advance: Of which stream.
            there_B: Its tokens beside CLS before anything is trimmed.
            share: γ.
        """
        if (name := site(step, advance)) not in self:
            return Kept(1 + there_B)
        part = self.part(name)
        tokens_B = share * there_B
        if part.tokens is None:
            tokens_B = there_B
        elif isinstance(part.tokens, RandomTokens):
            tokens_B = part.tokens.count(there_B, share)
        width = block_size(advance)[1]
        own, cross = (self._heads_at(heads, width, share) for heads in (part.self_heads, part.cross_heads))
        return Kept(1 + tokens_B, None, *(torch.full_like(tokens_B, number) for number in (own, cross)))

    @staticmethod
    def _heads_at(heads: nn.Module | None, of: int, share: float) -> float:
        if heads is None:
            return float(of)
        return float(heads.count(share)) if isinstance(heads, RankedHeads) else share * of

    def shift(self, by: float) -> None:
        """Adds a number to every score of tokens and heads."""
        self.shift_groups(dict.fromkeys((*_TOKENS, *_HEADS), by))

    def shift_groups(self, by: Mapping[str, float]) -> None:
        """Adds to every score what its group is given, nothing where that is not named."""
        for name in self:
            part = self.part(name)
            for group, scored in ((part.group, part.tokens), ("msa", part.self_heads), ("mca", part.cross_heads)):
                if isinstance(scored, TokenTrimmer | HeadTrimmer) and group in by:
                    scored.shift(by[group])

    def seen(self, stream: TokenStream) -> TokenStream:
        """What trimmers look at: the tokens through a layer norm without parameters.

        The features of a pre-norm tower grow with depth, and the global score is quadratic in them: unnormalised, deep
        trimmers would begin by dropping tokens at random, whatever their bias.
        """
        return stream.with_x(self._normalised(stream.x))

    def seen_cls(self, stream: TokenStream) -> Tensor:
        """(B, D) ``seen(stream).cls``, of which nothing else is computed."""
        return self._normalised(stream.cls)

    def _normalised(self, x: Tensor) -> Tensor:
        x = x if self.config.teach_backbone else x.detach()
        return functional.layer_norm(x, x.shape[-1:])
