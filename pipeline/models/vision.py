"""The vision tower: a ViT with timm's parameter names, as steps of a layer schedule.

B batch, P patches, N = P + 1 tokens (class token first), D width, R x C grid of patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.errors import UserError
from pipeline.limits import above_zero, at_least
from pipeline.models.blocks import PreNormBlock, init_transformer
from pipeline.models.feed_forward import Activation
from pipeline.models.schedule import CLS, NO_STREAMS, Advance, Intervention, Step, Streams, TokenStream, execute


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Size of a ViT.

    Attributes:
        height: Input height in pixels, a multiple of `patch`.
        width_px: Input width in pixels, a multiple of `patch`.
        patch: Side of a patch in pixels.
        width: D.
        depth: Number of blocks.
        heads: Attention heads; divides `width`.
        mlp_ratio: Hidden width of the MLP over D.
        eps: Of the layer norms.
        activation: Of the MLPs.
        patch_bias: Whether the patch projection has a bias (not in CLIP's towers).
        pre_norm: Whether a norm follows the position embedding (in CLIP's towers).
    """

    height: int = 256
    width_px: int = 256
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    activation: Activation = "gelu"
    patch_bias: bool = True
    pre_norm: bool = False

    def __post_init__(self) -> None:
        at_least(self, "vision", 1, "height", "width_px", "patch", "width", "depth", "heads")
        above_zero(self, "vision", "mlp_ratio", "eps")
        if not 1 <= self.width * self.mlp_ratio < float("inf"):
            raise UserError(
                f"vision.mlp_ratio={self.mlp_ratio} must give the MLP a width, of vision.width={self.width}; 4 is usual"
            )
        for name, pixels in (("height", self.height), ("width_px", self.width_px)):
            if pixels % self.patch:
                near = max(1, round(pixels / self.patch)) * self.patch
                raise UserError(f"vision.{name}={pixels} must be a multiple of vision.patch={self.patch}; try {near}")
        if self.width % self.heads:
            raise UserError(f"vision.width={self.width} must be a multiple of vision.heads={self.heads}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width_px // self.patch

    @property
    def patches(self) -> int:
        """P."""
        return self.grid[0] * self.grid[1]


class PatchEmbed(nn.Module):
    """Convolution whose stride is its kernel; timm's name ``proj``."""

    def __init__(self, patch: int, width: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, bias=bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, P, D), row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTower(nn.Module):
    """ViT up to its final norm over all tokens.

    Args:
        config: Sizes.
        guide: Name of the stream whose CLS guides trimming here.
    """

    def __init__(self, config: VisionConfig, guide: str = "text") -> None:
        super().__init__()
        self.config = config
        self.guide = guide
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.width))
        self.patch_embed = PatchEmbed(config.patch, config.width, config.patch_bias)
        self.blocks = nn.ModuleList(
            PreNormBlock(config.width, config.heads, config.mlp_ratio, config.eps, config.activation)
            for _ in range(config.depth)
        )
        self.norm_pre = nn.LayerNorm(config.width, eps=config.eps) if config.pre_norm else nn.Identity()
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        std = init_transformer(self, config.width)
        nn.init.trunc_normal_(self.pos_embed, std=std)
        nn.init.trunc_normal_(self.cls_token, std=std)

    def embed(self, pixels: Tensor) -> TokenStream:
        """(B, 3, height, width) normalised pixels -> a stream of 1 + P tokens."""
        patches_BPD = self.patch_embed(pixels)
        x_BND = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches_BPD], 1) + self.pos_embed
        origin_N = torch.arange(CLS, self.config.patches, device=pixels.device)
        return TokenStream(self.norm_pre(x_BND), origin=origin_N.expand(len(pixels), -1))

    @property
    def steps(self) -> list[Step]:
        """One step a block; the stream is called ``image``."""
        return [
            Step("vision", layer, (Advance("image", block, (), self.guide),)) for layer, block in enumerate(self.blocks)
        ]

    def forward(
        self, pixels: Tensor, interventions: Sequence[Intervention] = (), others: Streams = NO_STREAMS
    ) -> TokenStream:
        """The whole tower.

        Args:
            pixels: (B, 3, height, width), normalised.
            interventions: Methods that act on its layers.
            others: Streams that they may look at, by name.

        Returns:
            The image stream after the final norm.
        """
        streams = execute(self.steps, {**others, "image": self.embed(pixels)}, interventions)
        return self.finish(streams["image"])

    def finish(self, stream: TokenStream) -> TokenStream:
        """The final norm."""
        return stream.with_x(self.norm(stream.x))


def resize_positions(table_1ND: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A position table for another grid of patches, as ALBEF, BLIP and METER resize theirs.

    Bicubic with half-pixel centres and without antialiasing; the class token's row stays.

    Args:
        table_1ND: (1, 1 + R * C, D).
        old: R and C of the table.
        new: Of the result.

    Returns:
        (1, 1 + R' * C', D).
    """
    if old == new:
        return table_1ND
    grid_1DRC = table_1ND[:, 1:].transpose(1, 2).unflatten(2, old)
    resized_1DRC = F.interpolate(grid_1DRC, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table_1ND[:, :1], resized_1DRC.flatten(2).transpose(1, 2)], 1)
