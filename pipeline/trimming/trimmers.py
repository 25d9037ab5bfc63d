"""SmartTrim's trimmers (arXiv 2305.15033, section 3): small networks that score tokens and heads.

B batch, N tokens, T packed tokens, D width, H heads, D' trimmer width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_prep.errors import UserError
from pipeline.limits import a_share, above_zero, at_least
from pipeline.models.blocks import PostNormBlock, PreNormBlock
from pipeline.models.schedule import Advance, Step, TokenStream, site


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
        teach_backbone: Whether the trimmers' scores send their gradient into the backbone, the cost's above all. A
            short training wants its backbone to follow the task alone.
    """

    width_share: float = 1 / 6
    keep_bias: float = 3.0
    last_std: float = 0.02
    temperature: float = 1.0
    noise: float = 1.0
    noise_ramp: float = 0.2
    teach_backbone: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.width_share <= 1:
            raise UserError(f"trimmers.width_share={self.width_share} must lie in (0, 1]")
        above_zero(self, "trimmers", "temperature", "last_std")
        a_share(self, "trimmers", "noise_ramp")
        at_least(self, "trimmers", 0, "noise")


def mlp(width_in: int, hidden: int, width_out: int, last_std: float, bias: float = 0.0) -> nn.Sequential:
    """Linear, GELU, linear; the last weights small and its bias given."""
    last = nn.Linear(hidden, width_out)
    nn.init.normal_(last.weight, std=last_std)
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), last)


@torch.no_grad()
def _shift(scores: nn.Sequential, by: float) -> None:
    last = scores[-1]
    assert isinstance(last, nn.Linear)
    last.bias.add_(by)


class TokenTrimmer(nn.Module):
    """Scores each token by itself and by what the sentence or picture asks for.

    Args:
        width: D of the tokens.
        guide_width: Width of the other modality's CLS.
        config: Size and start.
    """

    def __init__(self, width: int, guide_width: int, config: TrimmerConfig) -> None:
        super().__init__()
        inner = max(8, round(width * config.width_share))
        self.down = nn.Linear(width, inner)
        self.local = mlp(inner, inner, 1, config.last_std, config.keep_bias)
        self.ask = mlp(width + guide_width, inner, inner, config.last_std)
        self.key = nn.Linear(inner, inner, bias=False)

    def forward(self, stream: TokenStream, cls_BD: Tensor, guide_BD: Tensor) -> Tensor:
        """Scores π_t = π_l + π_g of all tokens, (B, N) or packed (T,); a token stays where it is >= 0."""
        small = self.down(stream.x)
        asked_Bd = self.ask(torch.cat([cls_BD, guide_BD], -1)) @ self.key.weight
        return self.local(small)[..., 0] + (small * spread(asked_Bd, stream)).sum(-1)

    def shift(self, by: float) -> None:
        """Adds a number to every score."""
        _shift(self.local, by)


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
        self.score = mlp(width, inner, heads, config.last_std, config.keep_bias)

    def forward(self, seen_BD: Tensor) -> Tensor:
        """(B, width) -> (B, H); a head stays where its score is >= 0."""
        scores: Tensor = self.score(seen_BD)
        return scores

    def shift(self, by: float) -> None:
        """Adds a number to every score."""
        _shift(self.score, by)


def spread(per_instance_BD: Tensor, stream: TokenStream) -> Tensor:
    """One row per instance -> something that broadcasts over its tokens, padded or packed."""
    if stream.offsets is None:
        return per_instance_BD[:, None]
    lengths = torch.tensor(stream.offsets, device=per_instance_BD.device).diff()
    return per_instance_BD.repeat_interleave(lengths, 0)


class StepTrimmers(nn.Module):
    """The trimmers of one stream at one step: its tokens, its self-attention's heads, its cross-attention's.

    Args:
        advance: What happens at the step.
        guide_width: Width of the guiding stream.
        config: Size and start.
    """

    def __init__(self, advance: Advance, guide_width: int, config: TrimmerConfig) -> None:
        super().__init__()
        width, heads = block_size(advance)
        self.tokens = TokenTrimmer(width, guide_width, config)
        self.self_heads = HeadTrimmer(width, heads, config)
        self.cross_heads = None if not advance.sources else HeadTrimmer(width + guide_width, heads, config)


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

    Args:
        schedule: The backbone's steps.
        widths: Width of each stream by name.
        config: Size and start.
    """

    def __init__(self, schedule: list[Step], widths: dict[str, int], config: TrimmerConfig) -> None:
        super().__init__(
            {
                site(step, advance): StepTrimmers(advance, _guide_width(step, advance, widths), config)
                for step in schedule
                for advance in step.advances
            }
        )
        self.config = config

    def shift(self, by: float) -> None:
        """Adds a number to every score of tokens and heads."""
        for module in self.modules():
            if isinstance(module, TokenTrimmer | HeadTrimmer):
                module.shift(by)

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
