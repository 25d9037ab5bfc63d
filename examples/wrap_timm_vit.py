"""Prune the vision tokens of your own timm ViT by a sentence (ELIP), and train through the pruning.

    python examples/wrap_timm_vit.py
    python examples/wrap_timm_vit.py --name vit_base_patch16_224 --image-size 224 --guidance stage

Weights and pictures are random: put your trained model in the place of `timm.create_model`. It has to be a plain ViT
of 12 blocks: class token, learned positions, without layer scale (DeiT III and DINOv2 have it) and registers.
"""

import argparse
from typing import Literal

import timm
import torch
from torch import nn

from data_prep.errors import UserError
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.weights.timm_vit import tower_from_timm


def make_vit(name: str, image_size: int) -> nn.Module:
    """What you have already."""
    if not timm.is_model(name):
        raise UserError(f"--name {name}: timm knows no such model; give a plain ViT such as vit_tiny_patch16_224")
    try:
        return timm.create_model(name, pretrained=False, img_size=image_size).eval()
    except (TypeError, ValueError, AssertionError) as error:  # not everything in timm has a size that can be set
        raise UserError(
            f"--name {name} --image-size {image_size}: timm makes no ViT of these ({error}); give a plain one such as "
            "vit_tiny_patch16_224, and a multiple of its patches' side"
        ) from error


def main() -> None:
    """Reads the options; what cannot be wrapped is told in a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="vit_tiny_patch16_224", help="a plain ViT of timm (%(default)s)")
    parser.add_argument("--image-size", type=int, default=96, help="in pixels (%(default)s)")
    parser.add_argument("--guidance", choices=["query", "stage"], default="query", help="(%(default)s)")
    options = parser.parse_args()
    try:
        wrap(options.name, options.image_size, options.guidance)
    except UserError as error:
        parser.exit(2, f"{error}\n")


def wrap(name: str, image_size: int, guidance: Literal["query", "stage"]) -> None:
    """Wraps, compares, prunes, trains one step, and gives the weights back."""
    torch.manual_seed(0)

    # Your ViT, and a tower that computes the same, layer by layer, so that a method can act between layers.
    vit = make_vit(name, image_size)
    tower = tower_from_timm(vit)
    pixels = torch.randn(4, 3, image_size, image_size)
    with torch.no_grad():
        apart = (tower(pixels).x - vit.forward_features(pixels)).abs().max().item()
    print(f"unpruned, the largest difference to timm's tokens is {apart:.1e}")
    if apart > 1e-4:
        raise SystemExit("the tower does not compute what timm computes")

    # The sentence is one vector of the tower's width for each picture, such as the [CLS] of your text encoder. Before
    # the third, fifth and eleventh layer it decides which patches stay; the others are merged into one token.
    pruning = PruningConfig(elip=ElipConfig(guidance=guidance, depths=(2, 2, 6, 2), ratios=(0.9, 0.65, 0.4)))
    pruning.check(tower.config.depth, tower.config.patches)
    sentence_BD = torch.randn(4, tower.config.width)
    elip = pruning.begin(tower, sentence_BD, seeds_B=torch.arange(4))  # anew for each batch
    image = tower(pixels, [elip])
    tokens = [layer.attention for layer in pruning.tokens_by_layer(tower.config.depth, tower.config.patches)]
    share = pruning.macs(tower) / PruningConfig(method="none").macs(tower)
    print(f"tokens by layer: {tokens}; {share:.0%} of the multiply-accumulates")
    print(f"patches that stayed in the first picture: {sorted(image.origin[0].clamp(min=-1).unique().tolist())[1:]}")

    # It is a module like any other: here one step on a made-up loss.
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3)
    image.cls.square().mean().backward()
    optimizer.step()

    # Its parameters have timm's names, so the trained weights go back (the classifier's are not touched).
    left_alone = vit.load_state_dict(tower.state_dict(), strict=False)
    print(f"trained weights are back in timm's model; not among them: {left_alone.missing_keys}")
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels).x, vit.forward_features(pixels), atol=1e-4, rtol=0)


if __name__ == "__main__":
    main()
