"""A vision tower that computes what a ViT of timm in memory computes, so that methods can act inside it."""

import re
from pathlib import Path
from typing import Any

from torch import nn

from data_prep.errors import UserError
from pipeline.models.feed_forward import Activation
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.weights.reading import Foreign
from pipeline.weights.vision import load_vision

FITS = "a plain ViT fits, such as vit_base_patch16_224 or vit_base_patch16_clip_224"
_NEEDED = ("patch_embed", "norm_pre", "blocks", "norm")
_FOREIGN = (
    (r"blocks\.\d+\.(ls\d\.gamma|gamma_\d)", "layer scale"),
    ("reg_token", "registers"),
    (r"blocks\.\d+\.attn\.[qk]_norm\.weight", "norms of queries and keys"),
    (r"patch_embed\.backbone\..*", "convolutions before its patches"),
)
"""Names of parameters that a tower of ours has no place for, and what they are."""


def tower_from_timm(vit: nn.Module) -> VisionTower:
    """A tower of our own with the weights, device, type and mode of a ``timm.models.VisionTransformer``.

    Its output, unpruned, is that of ``vit.forward_features``; parameters have timm's names, so that trained weights go
    back by ``vit.load_state_dict(tower.state_dict(), strict=False)``. Dropout and stochastic depth are left behind.

    Args:
        vit: A plain one: class token, learned positions, no layer scale, registers or norms of queries and keys.

    Raises:
        UserError: It has parts that ours has not.
    """
    theirs: Any = vit
    _check_parts(theirs)
    if isinstance(theirs.norm, nn.Identity):
        raise UserError(
            "this ViT has no norm before its pooling (fc_norm), so its tokens are not those of a class token; make it "
            'with timm.create_model(..., global_pool="token")'
        )
    parameter = next(vit.parameters())
    tower = VisionTower(_sizes(theirs)).to(parameter.device, parameter.dtype)
    load_vision(tower, Foreign(dict(vit.state_dict()), None, Path("the ViT of timm")))
    return tower.train(vit.training)


def _check_parts(vit: nn.Module) -> None:
    """Says by name what a list of unknown tensors would leave to be guessed."""
    if lacking := [name for name in _NEEDED if not hasattr(vit, name)]:
        raise UserError(f"{type(vit).__name__} is no ViT of timm: it has no {', '.join(lacking)}; {FITS}")
    for pattern, what in _FOREIGN:
        found = next((name for name in vit.state_dict() if re.fullmatch(pattern, name)), None)
        if found is not None:
            raise UserError(f"this ViT has {what} ({found}), which the tower here has not; {FITS}")


def _sizes(vit: Any) -> VisionConfig:
    """What a ViT of timm is made of."""
    block, embed = vit.blocks[0], vit.patch_embed
    height, width_px = embed.img_size
    return VisionConfig(
        height=height,
        width_px=width_px,
        patch=embed.proj.kernel_size[0],
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / vit.embed_dim,
        eps=block.norm1.eps,
        activation=_activation(block.mlp.act),
        patch_bias=embed.proj.bias is not None,
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
    )


def _activation(act: nn.Module) -> Activation:
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return "gelu"
    if type(act).__name__ == "QuickGELU":
        return "quick_gelu"
    raise UserError(f"this ViT's MLPs have the activation {act}; GELU and QuickGELU can be taken over")
